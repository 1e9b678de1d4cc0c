"""Random changes of training images, drawn anew for every image and epoch."""
