//! What a process that waits for long keeps in memory.

use libc::{c_int, c_void, dl_phdr_info};
use nix::unistd::{SysconfVar, sysconf};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for what is not writable of the program and of what it has loaded; linkers make two or three parts of each. What is
/// beyond stays in memory.
struct Parts {
    count: usize,
    all: [(usize, usize); 128],
}

/// Waits until `fd` is readable, and meanwhile does without the pages of this program's own code and constants, which come
/// back from its file when they are touched, and without those of what it has loaded. Pages that were written to stay, and so
/// does what the kernel refuses to take (mlock(2)). Returns early if a signal arrives.
///
/// A touched page brings the 16 around it with it. So what runs after the release is kept together: this function, and
/// syscall(2) for both calls.
pub fn wait_released(fd: BorrowedFd<'_>) {
    let parts = constant_parts();
    let mut wanted = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let forever: *const libc::timespec = std::ptr::null();
    let same_mask: *const libc::sigset_t = std::ptr::null();
    parts.release();
    // SAFETY: one valid pollfd, no timeout, no mask.
    unsafe { libc::syscall(libc::SYS_ppoll, &raw mut wanted, 1, forever, same_mask, 0) };
}

/// Does without the pages of code and constants once, as [`wait_released`] does: those that are needed from now on come back.
pub fn release() {
    constant_parts().release();
}

impl Parts {
    #[inline(always)]
    fn release(&self) {
        for (start, length) in &self.all[..self.count] {
            // SAFETY: private mappings of a file to which nobody can have written through them: they are mapped without
            // write permission, and an object in whose code the loader has to write (DT_TEXTREL) is not among them. So
            // every page comes back as it was. Segments share no page of memory, as they differ in their protection.
            unsafe { libc::syscall(libc::SYS_madvise, *start, *length, libc::MADV_DONTNEED) };
        }
    }
}

fn constant_parts() -> Parts {
    let mut parts = Parts {
        count: 0,
        all: [(0, 0); 128],
    };
    // SAFETY: `collect` fits the type, gets the pointer it expects and keeps nothing; dl_iterate_phdr holds a lock against
    // changes of what is loaded.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut parts).cast()) };
    parts
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
    let mut dynamic = headers.iter().filter(|header| header.p_type == libc::PT_DYNAMIC);
    // SAFETY: the address of a loaded object's dynamic section.
    if dynamic.any(|header| unsafe { relocates_text((base + header.p_vaddr as usize) as *const Entry) }) {
        return 0;
    }
    let constant = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for (header, part) in constant.zip(&mut parts.all[parts.count..]) {
        let start = base + header.p_vaddr as usize;
        let aligned = start & !(page as usize - 1);
        *part = (aligned, start + header.p_memsz as usize - aligned);
        parts.count += 1;
    }
    0
}

/// An entry of a dynamic section: its tag and its value, each a word (`ElfN_Dyn`).
type Entry = [usize; 2];

/// Whether the loader has written into code or constants of the object with this dynamic section.
///
/// # Safety
/// `entry` points to a dynamic section, which ends with DT_NULL.
unsafe fn relocates_text(mut entry: *const Entry) -> bool {
    const NULL: usize = 0;
    const TEXTREL: usize = 22;
    const FLAGS: usize = 30;
    const FLAG_TEXTREL: usize = 4;
    loop {
        // SAFETY: not beyond the end, see below.
        match unsafe { *entry } {
            [NULL, _] => return false,
            [TEXTREL, _] => return true,
            [FLAGS, flags] if flags & FLAG_TEXTREL != 0 => return true,
            // SAFETY: this one isn't the last.
            _ => entry = unsafe { entry.add(1) },
        }
    }
}
