//! `openssl s_client` under command: a TLS implementation that is not ours, and does what ours would not.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A client, and what it says, line by line.
pub(crate) struct OpenSsl {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl OpenSsl {
    /// `None` when it is not installed.
    pub(crate) fn start(address: SocketAddr, version: &str) -> Option<Self> {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &address.to_string(), version, "-servername", "localhost", "-msg"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let (tell, said) = mpsc::channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        listen(out, tell.clone());
        listen(err, tell);
        Some(Self { child, said })
    }

    /// Waits for a line; `false` when it has ended without it.
    pub(crate) fn says(&self, what: &str) -> bool {
        loop {
            match self.said.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(what) => return true,
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("openssl says nothing more, and not {what:?}"),
            }
        }
    }

    /// Everything that it says until it has ended.
    pub(crate) fn until_its_end(&self) -> String {
        let mut all = String::new();
        loop {
            match self.said.recv_timeout(PATIENCE) {
                Ok(line) => all = all + &line + "\n",
                Err(mpsc::RecvTimeoutError::Disconnected) => return all,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("openssl does not end: {all}"),
            }
        }
    }

    /// Gives a command, which is a line of one letter.
    pub(crate) fn command(&mut self, letter: &str) -> bool {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{letter}").and_then(|()| stdin.flush()).is_ok()
    }
}

fn listen(stream: impl Read + Send + 'static, tell: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if tell.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
