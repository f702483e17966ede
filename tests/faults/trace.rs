//! Faults between a process and its files, put in at an exact place: the process runs under `ptrace`, and every system call of
//! its main thread that changes a file or a directory is counted.

use libc::{c_long, c_void, pid_t, user_regs_struct};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::ptr::null_mut;

/// What happens at the chosen change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing: an unbroken run.
    None,
    /// SIGKILL, before the change is made.
    Kill,
    /// Another signal; the change is made.
    Signal(i32),
    /// From now on whatever takes room fails with ENOSPC; files can still be removed.
    FullDisk,
    /// From now on every change fails with EROFS.
    ReadOnly,
}

/// How a traced process ended.
pub struct Ended {
    pub status: ExitStatus,
    /// What it said on stderr.
    pub stderr: String,
    /// Changes that it made or tried.
    pub changes: usize,
}

/// Runs `command` with `fault` at its change number `at`, counted from 0.
#[expect(clippy::zombie_processes, reason = "waited for by `wait`, which sees the stops, too")]
pub fn run(command: &mut Command, fault: Fault, at: usize) -> Ended {
    let said = tempfile::tempfile().unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone().unwrap());
    // SAFETY: the closure only makes a system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, null_mut::<c_void>(), null_mut::<c_void>()) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    let child = command.spawn().expect("the program starts under ptrace, which this test needs");
    let pid = child.id() as pid_t;
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    assert!(libc::WIFSTOPPED(wait(pid)), "exec stops the traced process");
    ptrace(libc::PTRACE_SETOPTIONS, pid, options as usize);
    let (mut changes, mut signal, mut entering) = (0, 0, false);
    let status = loop {
        ptrace(libc::PTRACE_SYSCALL, pid, signal as usize);
        let status = wait(pid);
        signal = 0;
        if !libc::WIFSTOPPED(status) {
            break status;
        }
        if libc::WSTOPSIG(status) != libc::SIGTRAP | 0x80 {
            signal = libc::WSTOPSIG(status);
            continue;
        }
        entering = !entering;
        let mut registers = read_registers(pid);
        if !entering || !is_change(&registers) {
            continue;
        }
        match fault {
            Fault::Kill if changes == at => {
                send(pid, libc::SIGKILL);
                break wait(pid);
            }
            Fault::Signal(number) if changes == at => send(pid, number),
            Fault::FullDisk if changes >= at && takes_room(&registers) => refuse(pid, &mut registers, libc::ENOSPC),
            Fault::ReadOnly if changes >= at => refuse(pid, &mut registers, libc::EROFS),
            _ => {}
        }
        changes += 1;
    };
    Ended { status: ExitStatus::from_raw(status), stderr: read_all(said), changes }
}

fn read_all(mut file: File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Changes of an unbroken run of `command`, which must succeed.
pub fn count(command: &mut Command) -> usize {
    let ended = run(command, Fault::None, 0);
    assert!(ended.status.success(), "{}", ended.stderr);
    ended.changes
}

/// Whether the call changes a file or a directory. Writes to stdout and stderr do not count.
fn is_change(r: &user_regs_struct) -> bool {
    match r.orig_rax as c_long {
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev => r.rdi > 2,
        libc::SYS_openat => r.rdx as i32 & libc::O_CREAT != 0,
        number => CHANGES.contains(&number),
    }
}

const CHANGES: [c_long; 16] = [
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_linkat,
];

fn takes_room(r: &user_regs_struct) -> bool {
    let number = r.orig_rax as c_long;
    ![libc::SYS_unlink, libc::SYS_unlinkat, libc::SYS_rmdir, libc::SYS_ftruncate, libc::SYS_fchmod].contains(&number)
}

/// Makes the call fail with `error` without being done.
fn refuse(pid: pid_t, registers: &mut user_regs_struct, error: i32) {
    registers.orig_rax = u64::MAX;
    registers.rax = -i64::from(error) as u64;
    ptrace(libc::PTRACE_SETREGS, pid, std::ptr::from_mut(registers) as usize);
}

fn read_registers(pid: pid_t) -> user_regs_struct {
    // SAFETY: plain integers, for which zeros are valid; PTRACE_GETREGS fills them.
    let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, pid, std::ptr::from_mut(&mut registers) as usize);
    registers
}

/// A request whose argument is a number or the address of a live [`user_regs_struct`].
fn ptrace(request: libc::c_uint, pid: pid_t, data: usize) {
    // SAFETY: the callers pass numbers, or a structure that lives through the call.
    let done = unsafe { libc::ptrace(request, pid, null_mut::<c_void>(), data as *mut c_void) };
    assert_eq!(done, 0, "ptrace request {request}: {}", std::io::Error::last_os_error());
}

fn wait(pid: pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(waited, pid, "{}", std::io::Error::last_os_error());
    status
}

/// Sends to the main thread, which is the one that is traced.
fn send(pid: pid_t, signal: i32) {
    // SAFETY: no memory is passed.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, signal) };
}
