//! A terminal for the container's process: the slave becomes its controlling terminal, the master goes to the caller.

use super::super::terminal::send_master;
use super::{Error, failed};
use crate::rootfs::Console;
use proa_sys::errno::Raw;
use rustix::termios::Winsize;
use std::os::fd::OwnedFd;

/// Makes the slave stdin, stdout and stderr, and sends the master over `socket`.
pub fn attach(console: Console, socket: &OwnedFd, size: Option<(u16, u16)>) -> Result<(), Error> {
    if let Some((rows, columns)) = size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&console.slave, size)
            .map_err(|errno| failed(format!("ioctl(TIOCSWINSZ, {rows}x{columns})"))(errno.raw()))?;
    }
    send_master(socket, &console.master).map_err(failed("sendmsg of the terminal's master over the console socket"))?;
    nix::unistd::dup2_stdin(&console.slave)
        .and_then(|()| nix::unistd::dup2_stdout(&console.slave))
        .and_then(|()| nix::unistd::dup2_stderr(&console.slave))
        .map_err(failed("dup2 of the terminal to stdio"))
}

/// Makes the terminal that stdin is the controlling one of the session that this process leads.
pub fn control() -> Result<(), Error> {
    rustix::process::ioctl_tiocsctty(std::io::stdin()).map_err(|errno| failed("ioctl(TIOCSCTTY)")(errno.raw()))
}
