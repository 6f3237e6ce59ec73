//! Descriptors: close_range(2), descriptor passing, pidfds.
