//! The filter under which a WebAssembly engine runs its guest, whatever the bundle's profile says.
//!
//! Made when this is compiled, for that machine, of a table and nothing else: a start pays for its installation alone. What the kernel does with several filters is the strictest of what they say (seccomp(2)), so this one
//! gives nothing that a profile takes.
//!
//! [`Scope::Engine`] is a list of what is allowed: everything that WasmEdge 0.14 and 0.17, the C and C++ libraries below
//! them and proa's own code do from a guest's first instruction on; each group of the table names who makes its calls. The
//! rest is `ENOSYS`, on which libraries fall back to older calls (glibc: clone3(2) to clone(2)). An engine whose code an
//! attacker has taken over makes no process, program or executable memory, looks into no other process, and reaches no
//! part of the kernel that the guest does not use.
//!
//! [`Scope::Plugins`] is a list of what is refused, for an engine with plugins of the administrator's: native code of which
//! nobody knows what it needs (other programs, code that it compiles, devices).

use crate::bpf::{
    AND, ARCHITECTURE, IF_AT_LEAST, IF_BITS, IF_EQUAL, IF_GREATER, Instruction, JUMP, LOAD, NUMBER, RETURN,
};
use crate::enosys::{RETURN_ENOSYS, X32_BIT};

/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_KILL_PROCESS` (Linux 4.14).
const KILL: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO | EPERM`.
const RETURN_EPERM: u32 = 0x0005_0000 | libc::EPERM as u32;

/// The `AUDIT_ARCH_*` of this machine (linux/audit.h); 0 where no engine runs.
const NATIVE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else if cfg!(target_arch = "riscv64") {
    0xc000_00f3
} else {
    0
};

/// What runs beside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The engine alone.
    Engine,
    /// The engine, and plugins.
    Plugins,
}

/// A comparison of 32 bits of an argument under a mask.
#[derive(Clone, Copy)]
struct Test {
    argument: u32,
    /// The upper half of the argument, not the lower.
    upper: bool,
    mask: u32,
    value: u32,
}

const fn bits(argument: u32, mask: u32, value: u32) -> Test {
    Test {
        argument,
        upper: false,
        mask,
        value,
    }
}

const fn equal(argument: u32, value: u32) -> Test {
    bits(argument, !0, value)
}

/// When a call is allowed: if all tests of one alternative hold.
type When = &'static [&'static [Test]];

const ALWAYS: When = &[&[]];
const NEVER: When = &[];

/// One system call, or some whose numbers follow each other.
#[derive(Clone, Copy)]
struct Rule {
    first: u32,
    last: u32,
    when: When,
    /// What the kernel returns otherwise.
    refusal: u32,
}

const fn rule(number: libc::c_long, when: When, refusal: u32) -> Rule {
    let number = number as u32;
    Rule {
        first: number,
        last: number,
        when,
        refusal,
    }
}

/// `PROT_EXEC` is not among the rights (mmap(2), mprotect(2)).
const NOT_EXECUTABLE: When = &[&[bits(2, libc::PROT_EXEC as u32, 0)]];

/// A thread of this process in its namespaces: what pthread_create(3) makes, and no process (clone(2); its flags come first on
/// all machines of [`NATIVE`]).
const THREAD: When = &[&[bits(
    0,
    libc::CLONE_THREAD as u32 | NAMESPACES,
    libc::CLONE_THREAD as u32,
)]];

/// Whatever clone(2) makes stays in this process's namespaces.
const SAME_NAMESPACES: When = &[&[bits(0, NAMESPACES, 0)]];

const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// What socket(2) has in its second argument beside `SOCK_NONBLOCK` and `SOCK_CLOEXEC`.
const KIND: u32 = 0xf;

/// TCP and UDP over IPv4 and IPv6; no raw sockets, none of netlink, of Unix, or of another family. The resolver asks netlink
/// for this host's addresses to sort what it found (getaddrinfo(3)), and takes a refusal for "both families".
const INTERNET: When = &[
    &[equal(0, AF_INET), bits(1, KIND, STREAM), equal(2, 0)],
    &[equal(0, AF_INET), bits(1, KIND, STREAM), equal(2, TCP)],
    &[equal(0, AF_INET), bits(1, KIND, DATAGRAM), equal(2, 0)],
    &[equal(0, AF_INET), bits(1, KIND, DATAGRAM), equal(2, UDP)],
    &[equal(0, AF_INET6), bits(1, KIND, STREAM), equal(2, 0)],
    &[equal(0, AF_INET6), bits(1, KIND, STREAM), equal(2, TCP)],
    &[equal(0, AF_INET6), bits(1, KIND, DATAGRAM), equal(2, 0)],
    &[equal(0, AF_INET6), bits(1, KIND, DATAGRAM), equal(2, UDP)],
];

/// The same, and what a plugin's libraries talk to services of the container and to the kernel's routing by.
const NOT_RAW: When = &[
    &[equal(0, AF_INET), bits(1, KIND, STREAM)],
    &[equal(0, AF_INET), bits(1, KIND, DATAGRAM)],
    &[equal(0, AF_INET6), bits(1, KIND, STREAM)],
    &[equal(0, AF_INET6), bits(1, KIND, DATAGRAM)],
    &[equal(0, libc::AF_UNIX as u32)],
    &[equal(0, libc::AF_NETLINK as u32), equal(2, libc::NETLINK_ROUTE as u32)],
];

const AF_INET: u32 = libc::AF_INET as u32;
const AF_INET6: u32 = libc::AF_INET6 as u32;
const STREAM: u32 = libc::SOCK_STREAM as u32;
const DATAGRAM: u32 = libc::SOCK_DGRAM as u32;
const TCP: u32 = libc::IPPROTO_TCP as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;

/// `fd_read` on sockets, whether stdio is a terminal (isatty(3), in two forms), and the scope of an IPv6 address in `resolv.conf`
/// (if_nametoindex(3)). Nothing that types into a terminal (`TIOCSTI`).
const QUESTIONS: When = &[
    &[equal(1, libc::FIONREAD as u32)],
    &[equal(1, libc::FIONBIO as u32)],
    &[equal(1, libc::TCGETS as u32)],
    &[equal(1, 0x802c_542a)], // TCGETS2
    &[equal(1, libc::TIOCGWINSZ as u32)],
    &[equal(1, 0x8933)], // SIOCGIFINDEX
];

/// The C library names what it allocates (`PR_SET_VMA`); and that memory does not become executable can be asked
/// (`PR_GET_MDWE`), by proa's tests.
const HARMLESS: When = &[&[equal(0, 0x5356_4d41)], &[equal(0, 66)]];

/// Limits are asked for, not set: the new ones are a null pointer (prlimit(2)).
const ASKED: When = &[&[
    equal(2, 0),
    Test {
        argument: 2,
        upper: true,
        mask: !0,
        value: 0,
    },
]];

/// What [`Scope::Engine`] allows.
#[rustfmt::skip]
const ALLOWED: Table = Table::new(
    &[
        // WASI's fd_* and path_* in WasmEdge (lib/host/wasi/inode-linux.cpp). The resolver's and the hull's own files are opened
        // and read by the same calls; pread64 is what a trap's backtrace reads the module by, close_range what init's
        // descriptors are closed by (executor/src/wasm/process.rs), openat2 and fstatfs what files are judged by (opens.rs).
        &[
            libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2,
            libc::SYS_write, libc::SYS_writev, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2,
            libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_lseek,
            libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_fstatfs, libc::SYS_statfs,
            libc::SYS_getdents64, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat,
            libc::SYS_fcntl, libc::SYS_dup, libc::SYS_dup3, libc::SYS_getcwd,
            libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_fsync, libc::SYS_fdatasync,
            libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_unlinkat, libc::SYS_mkdirat, libc::SYS_renameat2,
            libc::SYS_utimensat,
        ],
        // The guest's memory (WasmEdge, lib/system/allocator.cpp), malloc(3), and the observer, which gives pages back
        // (sys/src/memory.rs). mmap and mprotect are below.
        &[libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk],
        // WASI's poll_oneoff, clock_* and sched_yield; the deadline and the grace period (executor/src/wasm/watch.rs).
        &[
            libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
            libc::SYS_eventfd2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
            libc::SYS_timer_create, libc::SYS_timer_settime, libc::SYS_timer_gettime, libc::SYS_timer_delete,
            libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
            libc::SYS_gettimeofday, libc::SYS_sched_yield,
        ],
        // WASI's sock_*, the resolver, and what init has to say to its parent. socket is below.
        &[
            libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4, libc::SYS_connect,
            libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg,
            libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_recvmmsg,
            libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_shutdown,
        ],
        // WASI's random_get, and the resolver's identifiers.
        &[libc::SYS_getrandom],
        // The observer's thread (pthread_create(3)), locks and the status page. clone is below.
        &[
            libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_sched_getaffinity, libc::SYS_membarrier,
            libc::SYS_gettid, libc::SYS_exit,
        ],
        // Signals that end the guest, traps of compiled code (WasmEdge, lib/system/fault.cpp), abort(3) and WASI's proc_raise
        // (tgkill); and the ends.
        &[
            libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
            libc::SYS_restart_syscall, libc::SYS_getpid, libc::SYS_tgkill, libc::SYS_exit_group,
        ],
        // The C library asks who and where it is (secure_getenv(3), gethostname(3), sysconf(3)).
        &[
            libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_uname, libc::SYS_sysinfo,
        ],
        // What C libraries call instead of the above where the machine has it.
        OLDER,
    ],
    ALWAYS,
    &[
        rule(libc::SYS_mmap, NOT_EXECUTABLE, RETURN_EPERM),
        rule(libc::SYS_mprotect, NOT_EXECUTABLE, RETURN_EPERM),
        rule(libc::SYS_clone, THREAD, RETURN_EPERM),
        rule(libc::SYS_socket, INTERNET, RETURN_EPERM),
        rule(libc::SYS_ioctl, QUESTIONS, RETURN_EPERM),
        rule(libc::SYS_prctl, HARMLESS, RETURN_EPERM),
        rule(libc::SYS_prlimit64, ASKED, RETURN_EPERM),
    ],
);

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_dup2, libc::SYS_renameat,
    libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_wait, libc::SYS_time, libc::SYS_getrlimit,
];
#[cfg(target_arch = "aarch64")]
const OLDER: &[libc::c_long] = &[libc::SYS_renameat, libc::SYS_getrlimit];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OLDER: &[libc::c_long] = &[];

/// What [`Scope::Plugins`] refuses: other processes, the kernel's own code and memory, namespaces and mounts, keys, and ways into
/// files by something else than their names.
#[rustfmt::skip]
const REFUSED: Table = Table::new(
    &[
        &[
            libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_process_madvise,
            libc::SYS_pidfd_getfd, libc::SYS_kcmp, libc::SYS_userfaultfd, libc::SYS_perf_event_open,
        ],
        &[
            libc::SYS_bpf, libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load,
            libc::SYS_reboot, libc::SYS_syslog, libc::SYS_acct, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_quotactl,
            libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_clock_adjtime, libc::SYS_adjtimex,
            libc::SYS_personality,
        ],
        &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register],
        &[
            libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_unshare, libc::SYS_setns,
            libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_mount_setattr,
            libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick,
        ],
        &[libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key],
        &[libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at],
        OF_THE_MACHINE,
    ],
    NEVER,
    &[
        rule(libc::SYS_clone, SAME_NAMESPACES, RETURN_EPERM),
        // Its flags are in memory, where no filter looks; the C library does without.
        rule(libc::SYS_clone3, NEVER, RETURN_ENOSYS),
        rule(libc::SYS_socket, NOT_RAW, RETURN_EPERM),
    ],
);

#[cfg(target_arch = "x86_64")]
const OF_THE_MACHINE: &[libc::c_long] = &[
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const OF_THE_MACHINE: &[libc::c_long] = &[];

/// The program, as [`crate::Program`] has its instructions; `None` for a machine that no engine runs on.
pub fn filter(scope: Scope) -> Option<&'static [u8]> {
    static ENGINE: [[u8; Instruction::SIZE]; ALLOWING.length] = ALLOWING.encode();
    static PLUGINS: [[u8; Instruction::SIZE]; REFUSING.length] = REFUSING.encode();
    let program = match scope {
        Scope::Engine => ENGINE.as_flattened(),
        Scope::Plugins => PLUGINS.as_flattened(),
    };
    (NATIVE != 0).then_some(program)
}

const ALLOWING: Code = Code::of(&ALLOWED, RETURN_ENOSYS);
const REFUSING: Code = Code::of(&REFUSED, ALLOW);

/// Rules in the order of their numbers.
struct Table {
    rules: [Rule; Self::MAX],
    length: usize,
}

impl Table {
    const MAX: usize = 256;

    /// Calls for which the same holds, by groups, and those with rules of their own.
    const fn new(groups: &[&[libc::c_long]], when: When, others: &[Rule]) -> Self {
        let mut table = Self {
            rules: [rule(0, NEVER, 0); Self::MAX],
            length: 0,
        };
        let mut group = 0;
        while group < groups.len() {
            let mut index = 0;
            while index < groups[group].len() {
                table.insert(rule(groups[group][index], when, RETURN_EPERM));
                index += 1;
            }
            group += 1;
        }
        let mut index = 0;
        while index < others.len() {
            table.insert(others[index]);
            index += 1;
        }
        table
    }

    const fn insert(&mut self, rule: Rule) {
        let mut at = self.length;
        while at > 0 && self.rules[at - 1].first > rule.first {
            self.rules[at] = self.rules[at - 1];
            at -= 1;
        }
        assert!(at == 0 || self.rules[at - 1].first < rule.first, "a call has two rules");
        self.rules[at] = rule;
        self.length += 1;
    }

    /// The same with rules in one that follow each other and always allow.
    const fn merged(&self) -> Self {
        let mut merged = Self {
            rules: [rule(0, NEVER, 0); Self::MAX],
            length: 0,
        };
        let mut index = 0;
        while index < self.length {
            let rule = self.rules[index];
            let last = merged.length.saturating_sub(1);
            let before = merged.rules[last];
            if merged.length > 0 && before.last + 1 == rule.first && before.is_always() && rule.is_always() {
                merged.rules[last].last = rule.last;
            } else {
                merged.rules[merged.length] = rule;
                merged.length += 1;
            }
            index += 1;
        }
        merged
    }
}

impl Rule {
    const fn is_always(&self) -> bool {
        self.when.len() == 1 && self.when[0].is_empty()
    }
}

impl Test {
    /// Where `struct seccomp_data` has it.
    const fn offset(&self) -> u32 {
        let second = self.upper != cfg!(target_endian = "big");
        16 + 8 * self.argument + 4 * second as u32
    }

    /// How many instructions it takes.
    const fn length(&self) -> usize {
        if self.mask == !0 { 2 } else { 3 }
    }
}

/// A program while it is made.
struct Code {
    instructions: [Instruction; Self::MAX],
    length: usize,
}

impl Code {
    const MAX: usize = 2048;

    /// What does as the rules say, and `other` for a number that none has.
    const fn of(table: &Table, other: u32) -> Self {
        let mut code = Self {
            instructions: [Instruction::new(RETURN, KILL); Self::MAX],
            length: 0,
        };
        code.push(Instruction::new(LOAD, ARCHITECTURE));
        // i386's calls on x86-64, 32-bit ARM's on AArch64: no code of ours makes them.
        code.push(Instruction::branch(IF_EQUAL, NATIVE, 1, 0));
        code.push(Instruction::new(RETURN, KILL));
        code.push(Instruction::new(LOAD, NUMBER));
        if cfg!(target_arch = "x86_64") {
            code.push(Instruction::branch(IF_BITS, X32_BIT, 0, 1));
            code.push(Instruction::new(RETURN, RETURN_ENOSYS));
        }
        let table = table.merged();
        code.search(&table, 0, table.length, other);
        code
    }

    const fn push(&mut self, instruction: Instruction) {
        self.instructions[self.length] = instruction;
        self.length += 1;
    }

    /// A binary search among some of the rules for the number in the accumulator.
    const fn search(&mut self, table: &Table, from: usize, to: usize, other: u32) {
        match to - from {
            0 => self.push(Instruction::new(RETURN, other)),
            1 => self.judge(&table.rules[from], other),
            count => {
                let pivot = from + count / 2;
                self.push(Instruction::branch(IF_AT_LEAST, table.rules[pivot].first, 0, 1));
                // A jump of its own, as a conditional one does not reach far enough.
                let jump = self.length;
                self.push(Instruction::new(JUMP, 0));
                self.search(table, from, pivot, other);
                self.instructions[jump].k = (self.length - jump - 1) as u32;
                self.search(table, pivot, to, other);
            }
        }
    }

    /// What is done with the number in the accumulator: the end of a search.
    const fn judge(&mut self, rule: &Rule, other: u32) {
        let start = self.length;
        self.push(Instruction::branch(IF_AT_LEAST, rule.first, 0, 0));
        self.push(Instruction::branch(IF_GREATER, rule.last, 0, 0));
        let mut index = 0;
        while index < rule.when.len() {
            self.alternative(rule.when[index]);
            index += 1;
        }
        if !rule.is_always() {
            self.push(Instruction::new(RETURN, rule.refusal));
        }
        let length = self.length - start;
        assert!(length <= 256, "further than a conditional jump reaches");
        self.instructions[start].jf = (length - 1) as u8;
        self.instructions[start + 1].jt = (length - 2) as u8;
        self.push(Instruction::new(RETURN, other));
    }

    /// Allows if all tests hold, and else goes on behind.
    const fn alternative(&mut self, tests: &[Test]) {
        let mut left = 1;
        let mut index = 0;
        while index < tests.len() {
            left += tests[index].length();
            index += 1;
        }
        let mut index = 0;
        while index < tests.len() {
            let test = &tests[index];
            left -= test.length();
            self.push(Instruction::new(LOAD, test.offset()));
            if test.mask != !0 {
                self.push(Instruction::new(AND, test.mask));
            }
            self.push(Instruction::branch(IF_EQUAL, test.value, 0, left as u8));
            index += 1;
        }
        self.push(Instruction::new(RETURN, ALLOW));
    }

    const fn encode<const LENGTH: usize>(&self) -> [[u8; Instruction::SIZE]; LENGTH] {
        let mut bytes = [[0; Instruction::SIZE]; LENGTH];
        let mut index = 0;
        while index < LENGTH {
            bytes[index] = self.instructions[index].encode();
            index += 1;
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
