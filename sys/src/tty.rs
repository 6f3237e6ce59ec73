//! Terminals: ioctl_tty(2).
