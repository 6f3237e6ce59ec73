//! From a configuration and facts about the host to a plan: pure, no system call, testable without root.
