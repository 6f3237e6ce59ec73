//! execveat(2) and what surrounds it.
