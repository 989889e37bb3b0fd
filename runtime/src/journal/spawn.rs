//! Starting a process that is in the journal before it exists.
//!
//! A pid is known only after fork(2), and a kill between fork and a record would leave a process that nobody knows.
//! So the child writes its own record, between fork and exec. It holds a copy of the journal's lock until exec, so
//! whoever opens the journal after the parent's death finds either the record or no process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use super::replay::Line;
use super::{Entry, EntryId, Journal, JournalError};
use crate::os::{ProcessIdentity, own_start_time};

/// Room for a record: its fixed part, the role, two numbers.
const RECORD: usize = 512;

/// The first number that is no standard stream's.
const FIRST: RawFd = 3;

/// Stand for numbers that only the child knows.
const PID: u32 = u32::MAX;
const START: u64 = u64::MAX;

/// A record in pieces, to be put together without allocating.
struct Pieces {
    before_pid: Vec<u8>,
    before_start: Vec<u8>,
    end: Vec<u8>,
}

impl Journal {
    /// Starts `command` in a session of its own as `role`, its record being written before it runs. `inherited` are
    /// descriptors that it gets under the same numbers; everything else is closed in it, standard streams apart.
    pub fn spawn(
        &self,
        role: &str,
        command: Command,
        inherited: &[OwnedFd],
    ) -> Result<(Child, ProcessIdentity, EntryId), JournalError> {
        let inherited = inherited.iter().map(|fd| (fd.as_raw_fd(), fd.as_raw_fd())).collect();
        self.spawn_with(role, command, inherited)
    }

    /// Like [`Journal::spawn`]; the descriptors become 3, 4 and so on, in this order.
    pub fn spawn_numbered(
        &self,
        role: &str,
        command: Command,
        descriptors: &[OwnedFd],
    ) -> Result<(Child, ProcessIdentity, EntryId), JournalError> {
        let end = FIRST + RawFd::try_from(descriptors.len()).unwrap_or(RawFd::MAX - FIRST);
        let system = |e: rustix::io::Errno| self.error("pass descriptors to a child of", e.into());
        // Copies above the numbers that are to be taken, and those numbers taken here as well: then std's own pipe,
        // by which it learns that exec failed, is not replaced in the child.
        let copies: Vec<OwnedFd> = descriptors
            .iter()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, end))
            .collect::<Result<_, _>>()
            .map_err(system)?;
        let mut taken = Vec::new();
        while let fd = rustix::io::fcntl_dupfd_cloexec(&self.file, FIRST).map_err(system)?
            && fd.as_raw_fd() < end
        {
            taken.push(fd);
        }
        self.spawn_with(role, command, copies.iter().map(AsRawFd::as_raw_fd).zip(FIRST..).collect())
    }

    /// `descriptors`: what the child inherits, each with the number it gets.
    fn spawn_with(
        &self,
        role: &str,
        mut command: Command,
        descriptors: Vec<(RawFd, RawFd)>,
    ) -> Result<(Child, ProcessIdentity, EntryId), JournalError> {
        let program = command.get_program().into();
        let error = |source| JournalError::Spawn { program, source };
        // Nobody else appends while the child does.
        let mut state = self.lock_state();
        let id = EntryId(state.next);
        let Some(pieces) = Pieces::of(id, role) else {
            return Err(error(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("role `{role}` is too long"),
            )));
        };
        // Should the child write its record and then fail to exec, the id must not be used again.
        state.next += 1;
        let journal = self.file.as_raw_fd();
        let in_child = move || {
            rustix::process::setsid()?;
            // SAFETY: `self` keeps the journal open until spawn() has returned.
            pieces.write(unsafe { BorrowedFd::borrow_raw(journal) })?;
            // Last: a descriptor may get the number that the journal had here.
            for (fd, number) in &descriptors {
                pass(*fd, *number)?;
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls and copies into a buffer on its stack; it neither allocates nor takes
        // a lock.
        unsafe { command.pre_exec(in_child) };
        let child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                drop(state);
                // The record, if it was written, is of a process that has ended.
                self.forget(id)?;
                return Err(error(e));
            }
        };
        // The child is not reaped, so the pid is still its own.
        let process = match ProcessIdentity::of(child.id()) {
            Ok(Some(process)) => process,
            Ok(None) => ProcessIdentity { pid: child.id(), start: 0 },
            Err(e) => {
                drop(state);
                abandon(child);
                self.forget(id)?;
                return Err(e.into());
            }
        };
        state.entries.insert(id, Entry::Process { role: role.to_owned(), process });
        Ok((child, process, id))
    }

    /// Strikes off an id that may or may not have been recorded.
    fn forget(&self, id: EntryId) -> Result<(), JournalError> {
        let mut state = self.lock_state();
        state.entries.insert(
            id,
            Entry::Process { role: String::new(), process: ProcessIdentity { pid: 0, start: 0 } },
        );
        drop(state);
        self.strike(id)
    }
}

/// Leaves `fd` open across exec as `number`. Called between fork and exec.
fn pass(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls on numbers; `fd` is a copy of what the caller of spawn() keeps open.
    let result =
        unsafe { if fd == number { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, number) } };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn abandon(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Pieces {
    fn of(id: EntryId, role: &str) -> Option<Self> {
        let process = ProcessIdentity { pid: PID, start: START };
        let line = Line::Acquire { id, entry: Entry::Process { role: role.to_owned(), process } };
        let bytes = line.bytes().ok()?;
        if bytes.len() > RECORD {
            return None;
        }
        // From the end, since a role is text of the caller's.
        let start = rfind(&bytes, START.to_string().as_bytes())?;
        let pid = rfind(&bytes[..start], PID.to_string().as_bytes())?;
        Some(Self {
            before_pid: bytes[..pid].to_vec(),
            before_start: bytes[pid + PID.to_string().len()..start].to_vec(),
            end: bytes[start + START.to_string().len()..].to_vec(),
        })
    }

    /// Appends the calling process's record. Called between fork and exec: no allocation.
    fn write(&self, journal: BorrowedFd<'_>) -> io::Result<()> {
        let pid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
        let mut record = Record { bytes: [0; RECORD], length: 0 };
        record.push(&self.before_pid)?;
        record.push_number(pid.into())?;
        record.push(&self.before_start)?;
        record.push_number(own_start_time()?)?;
        record.push(&self.end)?;
        let line = &record.bytes[..record.length];
        let written = rustix::io::write(journal, line)?;
        if written == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

struct Record {
    bytes: [u8; RECORD],
    length: usize,
}

impl Record {
    fn push(&mut self, more: &[u8]) -> io::Result<()> {
        let end = self.length + more.len();
        let room = self.bytes.get_mut(self.length..end).ok_or(io::ErrorKind::WriteZero)?;
        room.copy_from_slice(more);
        self.length = end;
        Ok(())
    }

    fn push_number(&mut self, mut number: u64) -> io::Result<()> {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return self.push(&digits[at..]);
            }
        }
    }
}

fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).rposition(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_child_records_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path).unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let role = format!("odd \" role {PID} {START}");
        let (mut child, process, id) = journal.spawn(&role, command, &[]).unwrap();
        let other = journal.record(Entry::File { path: "/f".into() }).unwrap();
        let held = journal.entries();
        drop(journal);
        // Exec has closed the child's copy of the lock, and the file says what memory said.
        let journal = Journal::open(&path, Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!(journal.entries(), held);
        assert_eq!(held[0], (id, Entry::Process { role, process }));
        assert_eq!(held[1].0, other);
        let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid).unwrap());
        assert_eq!(rustix::process::getsid(pid).ok(), pid, "not a session of its own");
        process.kill_and_wait(Duration::from_secs(60)).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_does_not_exist_leaves_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path).unwrap();
        let error = journal.spawn("vmm", Command::new("/nonexistent/vmm"), &[]).unwrap_err();
        assert!(error.to_string().starts_with("cannot start /nonexistent/vmm"), "{error}");
        let id = journal.record(Entry::File { path: "/f".into() }).unwrap();
        drop(journal);
        let journal = Journal::open(&path, Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!(journal.entries(), [(id, Entry::File { path: "/f".into() })]);
        assert!(journal.problems().is_empty());
    }

    #[test]
    fn descriptors_are_inherited_only_on_purpose() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("journal")).unwrap();
        let given: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let kept = std::fs::File::open("/dev/null").unwrap();
        let mut command = Command::new("sh");
        // FreeBSD's /dev/fd has no more than 0, 1 and 2 unless fdescfs(4) is mounted there, and its shell knows no numbers
        // of two digits.
        let open = |fd: &dyn AsRawFd| {
            let fd = fd.as_raw_fd();
            if cfg!(target_os = "freebsd") {
                format!("procstat -f $$ | awk '$3 == {fd} {{ found = 1 }} END {{ exit !found }}'")
            } else {
                format!("test -e /dev/fd/{fd}")
            }
        };
        let test = format!("{} && ! {}", open(&given), open(&kept));
        command.arg("-c").arg(test);
        let (mut child, ..) = journal.spawn("test", command, &[given]).unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn descriptors_get_the_numbers_that_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("journal")).unwrap();
        let files: Vec<OwnedFd> = (0..3)
            .map(|number| {
                let path = dir.path().join(number.to_string());
                std::fs::write(&path, number.to_string()).unwrap();
                std::fs::File::open(path).unwrap().into()
            })
            .collect();
        // In another order than they were opened in, so that some numbers are taken by others of them.
        let files: Vec<OwnedFd> = files.into_iter().rev().collect();
        let mut command = Command::new("sh");
        command.args(["-c", "test \"$(cat <&3)$(cat <&4)$(cat <&5)\" = 210 && ! test -e /dev/fd/6"]);
        let (mut child, ..) = journal.spawn_numbered("test", command, &files).unwrap();
        assert!(child.wait().unwrap().success());
        // That exec failed is told although descriptors were passed.
        let missing = Command::new("/nonexistent/logger");
        assert!(journal.spawn_numbered("test", missing, &files).is_err());
        assert_eq!(journal.entries().len(), 1);
    }
}
