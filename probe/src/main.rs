//! `guac-probe [HOST:PORT [PROTOCOL]]`: exits with 0 if guacd answers within 4 seconds, and with 1 if it does not.

use std::process::ExitCode;
use std::time::Duration;

use guac_probe::{Answer, probe};

const USAGE: &str = "Asks a guacd whether it answers.

Usage: guac-probe [HOST:PORT [PROTOCOL]]

The defaults are localhost:4822 and ssh. A guacd that wants TLS counts as answering.
Exit codes: 0 it answers; 1 it does not, within 4 seconds; 2 usage.";

/// Less than the 5 seconds of the image's health check, so that this program can still say what is wrong.
const TIMEOUT: Duration = Duration::from_secs(4);

// Without a library for output, so that the program is small.
#[allow(clippy::print_stdout, clippy::print_stderr)]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (address, protocol) = match arguments[..] {
        ["-h" | "--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [] => ("localhost:4822", "ssh"),
        [address] if !address.starts_with('-') => (address, "ssh"),
        [address, protocol] => (address, protocol),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match probe(address, protocol, TIMEOUT) {
        Ok(Answer::Args) => println!("{address} answers for {protocol}"),
        Ok(Answer::Tls) => println!("{address} answers, and wants TLS"),
        Err(failure) => {
            eprintln!("{address} does not answer for {protocol}: {failure}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
