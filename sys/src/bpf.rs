//! bpf(2): device programs on cgroup v2.
