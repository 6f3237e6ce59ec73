//! What a process that waits for long keeps in memory.

use libc::{c_int, c_void, dl_phdr_info};
use nix::unistd::{SysconfVar, sysconf};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for the parts of a program that are not writable; linkers make two or three.
#[derive(Default)]
struct Parts {
    count: usize,
    all: [(usize, usize); 4],
}

/// Waits until `fd` is readable, and meanwhile does without the pages of this program's own code and constants, which come
/// back from its file when they are touched. Pages that were written to stay, and so does what the kernel refuses to take
/// (mlock(2)). Returns early if a signal arrives.
///
/// A touched page brings the 16 around it with it. So what runs after the release is kept together: this function, and
/// syscall(2) for both calls.
pub fn wait_released(fd: BorrowedFd<'_>) {
    let mut parts = Parts::default();
    // SAFETY: `collect` fits the type, gets the pointer it expects and keeps nothing; nothing is loaded or unloaded
    // meanwhile, as this process has one thread.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut parts).cast()) };
    let mut wanted = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let forever: *const libc::timespec = std::ptr::null();
    let same_mask: *const libc::sigset_t = std::ptr::null();
    for (start, length) in &parts.all[..parts.count] {
        // SAFETY: private mappings of a file to which nobody can have written through them: they are mapped without write
        // permission, and a program in whose code the loader has to write (DT_TEXTREL) is not what rustc links. So every
        // page comes back as it was. Segments share no page of memory, as they differ in their protection.
        unsafe { libc::syscall(libc::SYS_madvise, *start, *length, libc::MADV_DONTNEED) };
    }
    // SAFETY: one valid pollfd, no timeout, no mask.
    unsafe { libc::syscall(libc::SYS_ppoll, &raw mut wanted, 1, forever, same_mask, 0) };
}

/// Called for each loaded object, the program first, until it returns something else than 0: dl_iterate_phdr(3).
unsafe extern "C" fn collect(object: *mut dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr gives a valid object with `dlpi_phnum` program headers, and passes `data` on.
    let (base, headers, parts) = unsafe {
        let object = &*object;
        let count = usize::from(object.dlpi_phnum);
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, count);
        (object.dlpi_addr as usize, headers, &mut *data.cast::<Parts>())
    };
    let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE) else {
        return 1;
    };
    let constant = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for (header, part) in constant.zip(&mut parts.all) {
        let start = base + header.p_vaddr as usize;
        let aligned = start & !(page as usize - 1);
        *part = (aligned, start + header.p_memsz as usize - aligned);
        parts.count += 1;
    }
    1
}
