//! `completions`: what the shell needs to complete commands and options.

use crate::args::Cli;
use crate::error::Result;
use crate::output;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print a completion script for a shell
///
/// For example: metal-marlin completions bash > ~/.local/share/bash-completion/completions/metal-marlin
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "metal-marlin", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
