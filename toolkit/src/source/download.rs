//! How does a file get here over a network that fails? It is tried again after a pause, and goes on where it broke off.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use fs_err::File;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::host::digest::Stream;
use crate::source::proxy;
use crate::ui;

/// The largest tarball that is accepted, in bytes. Release tarballs are smaller.
pub const LARGEST: u64 = 64 << 20;

/// How often a download is tried again, and the pause before the first time. Each further pause is twice as long.
const RETRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Why a download has failed.
enum Problem {
    /// It may succeed if it is tried again.
    Passing(Error),
    /// It will not.
    Lasting(Error),
}

/// Downloads `url` to a new file, and returns its SHA-256. The environment variables for proxies apply (HTTPS_PROXY and so on).
///
/// # Errors
///
/// When it cannot be had, or has more than `largest` bytes. The file may then hold a part of it.
pub fn to_file(url: &str, path: &Path, largest: u64) -> Result<String> {
    let agent: Agent = Agent::config_builder()
        .timeout_resolve(Some(Duration::from_secs(10)))
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(Duration::from_secs(30)))
        .timeout_recv_body(Some(Duration::from_secs(600)))
        .http_status_as_error(false)
        .proxy(proxy::of(url)?)
        .build()
        .into();
    let (file, digest) = (File::create(path)?, Stream::default());
    let mut part = Part { file, length: 0, largest, digest, version: None };
    let mut pause = PAUSE;
    for tries in 0.. {
        match part.get_rest(&agent, url) {
            Ok(()) => break,
            Err(Problem::Passing(error)) if tries < RETRIES => {
                ui::warning(format!("{error:#}: trying again in {pause:?}, from byte {} on", part.length));
                thread::sleep(pause);
                pause *= 2;
            }
            Err(Problem::Passing(error)) => return Err(error.context(format!("tried {} times", tries + 1))),
            Err(Problem::Lasting(error)) => return Err(error),
        }
    }
    Ok(part.digest.finish())
}

/// The beginning of a file.
struct Part {
    file: File,
    length: u64,
    /// How long the whole file may be.
    largest: u64,
    digest: Stream,
    /// What the server calls the version of the file that this is the beginning of (ETag).
    version: Option<String>,
}

impl Part {
    fn get_rest(&mut self, agent: &Agent, url: &str) -> Result<(), Problem> {
        let mut request = agent.get(url);
        if let (Some(version), true) = (&self.version, self.length > 0) {
            // If the server has another version by now, it sends the whole of that.
            request = request.header("Range", format!("bytes={}-", self.length)).header("If-Range", version);
        }
        let response = request.call().map_err(|error| match error {
            ureq::Error::Timeout(_) | ureq::Error::Io(_) | ureq::Error::Protocol(_) => {
                let refused = matches!(&error, ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused);
                if refused { Problem::Lasting(anyhow!("{error}")) } else { Problem::Passing(anyhow!("{error}")) }
            }
            _ => Problem::Lasting(anyhow!("{error}")),
        })?;
        let status = response.status().as_u16();
        match status {
            200 => self.restart(&response).map_err(Problem::Lasting)?,
            206 if self.is_continued(&response) => {}
            // It sends another part than was asked for, or has no such part.
            206 | 416 => {
                self.version = None;
                return Err(Problem::Passing(anyhow!("the server cannot send the rest")));
            }
            408 | 429 | 500..=599 => {
                return Err(Problem::Passing(anyhow!("the server says {}", response.status())));
            }
            _ => return Err(Problem::Lasting(anyhow!("the server says {}", response.status()))),
        }
        self.append(response.into_body())
    }

    /// Begins anew, with the file that a response announces.
    fn restart(&mut self, response: &Response<Body>) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.length, self.digest) = (0, Stream::default());
        // A weak one, W/"...", does not say that the bytes are the same.
        let version = response.headers().get("ETag").and_then(|version| version.to_str().ok());
        self.version = version.filter(|version| version.starts_with('"')).map(str::to_owned);
        Ok(())
    }

    fn is_continued(&self, response: &Response<Body>) -> bool {
        let range = response.headers().get("Content-Range").and_then(|range| range.to_str().ok());
        range.is_some_and(|range| range.starts_with(&format!("bytes {}-", self.length)))
    }

    fn append(&mut self, body: Body) -> Result<(), Problem> {
        let progress = ui::download(body.content_length().map(|rest| self.length + rest));
        progress.set_position(self.length);
        let mut reader = progress.wrap_read(body.into_reader());
        let mut buffer = vec![0; 64 << 10];
        let result = loop {
            match reader.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    self.file.write_all(&buffer[..read]).map_err(|error| Problem::Lasting(error.into()))?;
                    self.digest.add(&buffer[..read]);
                    self.length += read as u64;
                    if self.length > self.largest {
                        let largest = self.largest >> 10;
                        break Err(Problem::Lasting(anyhow!("it is larger than {largest} KiB, and refused")));
                    }
                }
                Err(error) => {
                    break Err(Problem::Passing(Error::new(error).context("the download broke off")));
                }
            }
        };
        progress.finish_and_clear();
        result
    }
}
