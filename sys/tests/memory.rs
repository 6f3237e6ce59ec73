//! Alone in its program: the memory of other tests' threads would be counted with it.

use proa_sys::memory::wait_released;
use std::os::fd::AsFd;

fn resident_file_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_program_comes_back_after_the_wait() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(writer);
    let before = resident_file_kib();
    // End of file counts as readable.
    wait_released(reader.as_fd());
    let after = resident_file_kib();
    assert!(after < before, "{before} kB before, {after} kB after");
}
