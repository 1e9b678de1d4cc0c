"""The data set: found and verified, split, batched on the device."""
