//! Linux programs: looked up as execvp(3) does, in the container's root and with the container's `PATH`.
