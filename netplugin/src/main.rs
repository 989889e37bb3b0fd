//! The CNI plugin's binary: the environment and standard input in, a result or an error out.

use std::process::ExitCode;

use skep_cni::cni;

fn main() -> ExitCode {
    let outcome = cni::run(|name| std::env::var(name).ok(), std::io::stdin().lock());
    if let Some(output) = outcome.output {
        println!("{output}");
    }
    if outcome.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
