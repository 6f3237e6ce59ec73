//! What a process that waits for long keeps in memory, and of which files.

use libc::{c_int, c_void, dl_phdr_info};
use nix::errno::Errno;
use nix::unistd::{SysconfVar, sysconf};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// Where objects were that [`copy_objects`] has copied: their pages would not come back.
static COPIED: OnceLock<Vec<(usize, usize)>> = OnceLock::new();

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
    if COPIED
        .get()
        .is_some_and(|copied| copied.iter().any(|(start, end)| (*start..*end).contains(&base)))
    {
        return 0;
    }
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

/// An object that the dynamic loader has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its file, as the loader has opened it.
    pub path: CString,
    /// Where its segments begin and end.
    range: (usize, usize),
}

/// The objects that were loaded from files: not the program itself, and not what the kernel provides.
pub fn objects() -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    // SAFETY: `list` fits the type, gets the pointer it expects and keeps nothing; see above.
    unsafe { libc::dl_iterate_phdr(Some(list), (&raw mut objects).cast()) };
    objects.retain(|object| object.path.as_bytes().contains(&b'/'));
    objects
}

/// As [`collect`].
unsafe extern "C" fn list(object: *mut dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: as in `collect`; the name is a string that lives as long as the object.
    let (base, name, headers, objects) = unsafe {
        let object = &*object;
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum));
        let name = CStr::from_ptr(object.dlpi_name);
        (
            object.dlpi_addr as usize,
            name,
            headers,
            &mut *data.cast::<Vec<Object>>(),
        )
    };
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let ends = loaded.map(|header| {
        let start = base + header.p_vaddr as usize;
        (start, start + header.p_memsz as usize)
    });
    if let Some(range) = ends.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1))) {
        objects.push(Object {
            path: name.to_owned(),
            range,
        });
    }
    0
}

/// Puts a copy in memory in the place of all that is mapped of these objects' files, so that nobody gets at the files by this
/// process. For a process with one thread, and once.
pub fn copy_objects(objects: &[Object]) -> Result<(), std::io::Error> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mapped: Vec<Part> = maps.lines().filter_map(|line| part(line, objects)).collect();
    let ranges = objects.iter().map(|object| object.range).collect();
    if COPIED.set(ranges).is_err() {
        return Err(Errno::EALREADY.into());
    }
    // Nothing is allocated from here on: what the allocator writes might be in a part that is copied already.
    mapped.iter().try_for_each(copy).map_err(std::io::Error::from)
}

/// A mapping: where it begins, how long it is, and its protection.
#[derive(Debug, PartialEq, Eq)]
struct Part(usize, usize, c_int);

/// The mapping that a line of `/proc/self/maps` (proc_pid_maps(5)) tells of, if it is of a file and one of these objects.
fn part(line: &str, objects: &[Object]) -> Option<Part> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let rights = words.next()?.bytes();
    let (_offset, _device, inode) = (words.next()?, words.next()?, words.next()?);
    let within = |object: &Object| start < object.range.1 && object.range.0 < end;
    if inode == "0" || !objects.iter().any(within) {
        return None;
    }
    let protection = rights
        .zip(*b"rwx")
        .zip([libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC]);
    let protection = protection.filter(|((has, right), _)| has == right).map(|(_, bit)| bit);
    Some(Part(start, end - start, protection.fold(0, |all, bit| all | bit)))
}

fn copy(&Part(start, length, protection): &Part) -> Result<(), Errno> {
    let none = std::ptr::null_mut();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let new = unsafe { libc::mmap(none, length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if new == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    if protection & libc::PROT_READ != 0 {
        // SAFETY: both are mappings of this length, one readable, one writable; the only thread is here and does not write to
        // the old one.
        unsafe { std::ptr::copy_nonoverlapping(start as *const u8, new.cast::<u8>(), length) };
    }
    // SAFETY: what is replaced is a private mapping with the same content and protection, at once (mremap(2)).
    let moved = unsafe {
        libc::mprotect(new, length, protection) == 0
            && libc::mremap(
                new,
                length,
                length,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                start as *mut c_void,
            ) != libc::MAP_FAILED
    };
    if moved { Ok(()) } else { Err(Errno::last()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_objects_are_read() {
        let object = Object {
            path: c"/lib/libx.so".into(),
            range: (0x1000, 0x4fff),
        };
        let of = |line| part(line, std::slice::from_ref(&object));
        let line = "00002000-00004000 r-xp 00001000 fe:01 77   /lib/libx.so";
        assert_eq!(of(line), Some(Part(0x2000, 0x2000, libc::PROT_READ | libc::PROT_EXEC)));
        assert_eq!(
            of("00002000-00004000 ---p 00001000 fe:01 77 /a b"),
            Some(Part(0x2000, 0x2000, 0))
        );
        assert_eq!(of("00002000-00004000 rw-p 00000000 00:00 0"), None, "not of a file");
        assert_eq!(of("00005000-00006000 r-xp 00001000 fe:01 77 /lib/libx.so"), None);
        assert_eq!(of("nonsense"), None);
    }

    /// In a process of its own, as other tests have threads.
    #[test]
    fn copied_objects_work_as_before() {
        match nix::sys::wait::waitpid(fork(), None).unwrap() {
            nix::sys::wait::WaitStatus::Exited(_, 0) => {}
            other => panic!("{other:?}"),
        }
    }

    fn fork() -> nix::unistd::Pid {
        // SAFETY: the child is a copy with one thread. It allocates, which the C library makes safe after a fork.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => child,
            nix::unistd::ForkResult::Child => {
                let objects = objects();
                let copied = copy_objects(&objects).is_ok();
                release();
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                let left = maps.lines().filter(|line| part(line, &objects).is_some()).count();
                let text = format!("{:?}", std::env::args().collect::<Vec<_>>());
                let fine = copied && left == 0 && !text.is_empty() && !objects.is_empty();
                crate::exec::exit_now(if fine { 0 } else { 1 })
            }
        }
    }
}
