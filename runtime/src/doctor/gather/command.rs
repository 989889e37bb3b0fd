//! Running a program to hear what it says of itself.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// More than any of them says.
const MOST: u64 = 1 << 20;

/// What it writes, both streams after each other; an error where it does not end well.
pub(super) fn output(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let (code, text) = run(program, arguments)?;
    if code == Some(0) {
        return Ok(text);
    }
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    let status = code.map_or("was killed by a signal".to_owned(), |code| format!("ended with status {code}"));
    Err(format!("{} {} {status}: {last}", program.display(), arguments.join(" ")))
}

/// Its exit status, nothing for a signal, and what it writes.
pub(super) fn run(program: &Path, arguments: &[&str]) -> Result<(Option<i32>, String), String> {
    let error = |e| format!("cannot run {}: {e}", program.display());
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(error)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let out = std::thread::spawn(move || stdout.map(read));
    let err = std::thread::spawn(move || stderr.map(read));
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait().map_err(error)? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(LOOK),
            None => {
                // It may have ended just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} has not ended within {} s", program.display(), LIMIT.as_secs()));
            }
        }
    };
    let text = [out, err].into_iter().filter_map(|reader| reader.join().ok().flatten());
    Ok((status.code(), text.collect()))
}

fn read(from: impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    // What was read until an error is what there is.
    let _ = from.take(MOST).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_heard_and_their_failures_told() {
        let sh = |script: &str| output(Path::new("/bin/sh"), &["-c", script]);
        assert_eq!(sh("echo a; echo b >&2").unwrap(), "a\nb\n");
        let error = sh("echo broken >&2; exit 3").unwrap_err();
        assert!(error.contains("status 3: broken"), "{error}");
        let error = output(Path::new("/no/such/program"), &[]).unwrap_err();
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
