//! The two filters, run by the interpreter on the calls that matter.

use super::*;
use crate::bpf::MAX_INSTRUCTIONS;
use crate::interpreter::{Call, run};

fn outcome(scope: Scope, number: libc::c_long, args: &[u64]) -> u32 {
    let mut call = Call {
        number: number as u32,
        architecture: NATIVE,
        args: [0; 6],
    };
    call.args[..args.len()].copy_from_slice(args);
    run(filter(scope).unwrap(), call)
}

const BOTH: [Scope; 2] = [Scope::Engine, Scope::Plugins];

#[test]
fn every_number_gets_what_its_rule_says() {
    for (scope, table, other) in [
        (Scope::Engine, ALLOWED, RETURN_ENOSYS),
        (Scope::Plugins, REFUSED, ALLOW),
    ] {
        let program = filter(scope).unwrap();
        assert!(program.len() / Instruction::SIZE < MAX_INSTRUCTIONS / 4);
        for number in 0..1024 {
            let call = Call {
                number,
                architecture: NATIVE,
                args: [!0; 6],
            };
            let expected = match table.rules[..table.length].iter().find(|rule| rule.first == number) {
                Some(rule) if rule.is_always() => ALLOW,
                // None of the conditions holds for arguments that are all ones.
                Some(rule) => rule.refusal,
                None => other,
            };
            assert_eq!(run(program, call), expected, "{scope:?} {number}");
        }
    }
}

#[test]
fn memory_does_not_become_executable() {
    let (read, write, execute) = (1, 2, 4);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        assert_eq!(outcome(Scope::Engine, call, &[0, 4096, read | write]), ALLOW);
        for rights in [execute, read | execute, read | write | execute] {
            assert_eq!(outcome(Scope::Engine, call, &[0, 4096, rights]), RETURN_EPERM);
        }
    }
    for call in [
        libc::SYS_pkey_mprotect,
        libc::SYS_shmat,
        libc::SYS_memfd_create,
        libc::SYS_remap_file_pages,
        libc::SYS_personality,
    ] {
        assert_eq!(outcome(Scope::Engine, call, &[]), RETURN_ENOSYS, "{call}");
    }
}

#[test]
fn a_thread_is_made_and_nothing_else() {
    // What glibc's pthread_create has: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID.
    const PTHREAD: u64 = 0x003d_0f00;
    for scope in BOTH {
        assert_eq!(outcome(scope, libc::SYS_clone, &[PTHREAD]), ALLOW);
        assert_eq!(outcome(scope, libc::SYS_clone3, &[]), RETURN_ENOSYS);
        for namespace in [
            libc::CLONE_NEWNS,
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWNET,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWCGROUP,
        ] {
            let flags = PTHREAD | namespace as u64;
            assert_eq!(outcome(scope, libc::SYS_clone, &[flags]), RETURN_EPERM);
            assert_eq!(outcome(scope, libc::SYS_clone, &[namespace as u64 | 17]), RETURN_EPERM);
        }
    }
    // fork(2), as glibc makes it.
    assert_eq!(outcome(Scope::Engine, libc::SYS_clone, &[0x0120_0011]), RETURN_EPERM);
    assert_eq!(outcome(Scope::Plugins, libc::SYS_clone, &[0x0120_0011]), ALLOW);
    for call in [libc::SYS_execve, libc::SYS_execveat] {
        assert_eq!(outcome(Scope::Engine, call, &[]), RETURN_ENOSYS);
        assert_eq!(outcome(Scope::Plugins, call, &[]), ALLOW);
    }
}

#[test]
fn sockets_are_of_the_internet_and_not_raw() {
    let (stream, datagram, raw) = (1, 2, 3);
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
    for scope in BOTH {
        for family in [libc::AF_INET, libc::AF_INET6].map(|family| family as u64) {
            for protocol in [0, 6] {
                assert_eq!(outcome(scope, libc::SYS_socket, &[family, stream, protocol]), ALLOW);
            }
            assert_eq!(outcome(scope, libc::SYS_socket, &[family, datagram | flags, 17]), ALLOW);
            for protocol in [0, 1, 6, 17, 255] {
                assert_eq!(
                    outcome(scope, libc::SYS_socket, &[family, raw | flags, protocol]),
                    RETURN_EPERM
                );
            }
        }
        for family in [
            libc::AF_PACKET,
            libc::AF_ALG,
            libc::AF_VSOCK,
            libc::AF_XDP,
            libc::AF_KEY,
        ] {
            for kind in [stream, datagram, raw] {
                assert_eq!(
                    outcome(scope, libc::SYS_socket, &[family as u64, kind, 0]),
                    RETURN_EPERM
                );
            }
        }
        // Netlink of another kind than routes, such as NETLINK_NETFILTER.
        assert_eq!(outcome(scope, libc::SYS_socket, &[16, raw, 12]), RETURN_EPERM);
    }
    // Unix, and ping: not for the engine alone.
    assert_eq!(outcome(Scope::Engine, libc::SYS_socket, &[1, stream, 0]), RETURN_EPERM);
    assert_eq!(
        outcome(Scope::Engine, libc::SYS_socket, &[2, datagram, 1]),
        RETURN_EPERM
    );
    assert_eq!(outcome(Scope::Engine, libc::SYS_socket, &[16, raw, 0]), RETURN_EPERM);
    assert_eq!(outcome(Scope::Plugins, libc::SYS_socket, &[1, stream, 0]), ALLOW);
}

#[test]
fn nothing_of_the_kernel_is_left_that_a_guest_does_not_use() {
    for scope in BOTH {
        for call in [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_bpf,
            libc::SYS_mount,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
            libc::SYS_fsopen,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
        ] {
            let said = outcome(scope, call, &[]);
            assert!(
                [RETURN_ENOSYS, RETURN_EPERM].contains(&said),
                "{scope:?} {call}: {said:#x}"
            );
        }
    }
    // The terminal's input is not typed into, no other limit is set, and the process stays as hidden as it is.
    assert_eq!(outcome(Scope::Engine, libc::SYS_ioctl, &[0, 0x5412]), RETURN_EPERM);
    assert_eq!(outcome(Scope::Engine, libc::SYS_ioctl, &[0, libc::FIONREAD]), ALLOW);
    assert_eq!(outcome(Scope::Engine, libc::SYS_prlimit64, &[0, 7, 0, 1 << 40]), ALLOW);
    assert_eq!(
        outcome(Scope::Engine, libc::SYS_prlimit64, &[0, 7, 1 << 40, 0]),
        RETURN_EPERM
    );
    assert_eq!(
        outcome(Scope::Engine, libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1]),
        RETURN_EPERM
    );
}

#[test]
fn calls_of_another_architecture_end_the_process() {
    for scope in BOTH {
        let program = filter(scope).unwrap();
        let foreign = Call {
            number: libc::SYS_read as u32,
            architecture: NATIVE ^ 0x8000_0000,
            args: [0; 6],
        };
        assert_eq!(run(program, foreign), KILL);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(outcome(scope, libc::SYS_read | i64::from(X32_BIT), &[]), RETURN_ENOSYS);
            assert_eq!(outcome(scope, 520 | i64::from(X32_BIT), &[]), RETURN_ENOSYS);
        }
    }
}
