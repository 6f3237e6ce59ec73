//! mount_setattr(2) and the parts of the new mount API that rustix lacks.
