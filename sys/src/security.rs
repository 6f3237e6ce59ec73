//! seccomp(2), prctl(2), keyctl(2), capset(2), ioprio_set(2), sched_setattr(2), set_mempolicy(2).
