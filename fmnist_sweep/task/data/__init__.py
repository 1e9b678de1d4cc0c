"""The data set: find, fetch, verify, split and move it to the device."""
