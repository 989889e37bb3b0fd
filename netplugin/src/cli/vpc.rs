//! Networks declared for several hosts.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use super::declare::{Create, GroupCommand, NodeCommand};
use super::{CliError, Net, print_json, standard_input, table};
use crate::datapath::Host;
use crate::vpc::sync::{Outcome, Remote, Report};
use crate::vpc::{Declaration, DeclarationError, Directory, Installed, host_addresses};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Declare a network over several hosts, and make it here if this host is one of them.
    Create(Box<Create>),
    /// Change a declared network's hosts.
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Change a declared network's groups of sandboxes.
    Group {
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Give every host of a network its declaration, by ssh; have hosts that were given one from here and are removed take the
    /// network away. Exit status 1: not all of them have done so.
    Sync {
        /// The network.
        name: String,
        /// Only these hosts.
        #[arg(long = "node", value_name = "NAME")]
        nodes: Vec<String>,
        /// No longer look for this removed host, which will never be back.
        #[arg(long, value_name = "NAME")]
        forget: Vec<String>,
        /// What to run there.
        #[arg(long, value_name = "WORDS", default_value = "skep net")]
        remote: String,
        /// An option of ssh as its configuration file has it: KEY=VALUE.
        #[arg(short = 'o', long = "ssh-option", value_name = "OPTION")]
        options: Vec<String>,
        /// Seconds that one host may take.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put the declaration on standard input into force on this host (what sync runs there).
    Install {
        /// Which node this host is, instead of the one whose address it has.
        #[arg(long)]
        node: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take the network of the declaration on standard input away from this host, which is none of its nodes any more (what
    /// sync runs there).
    Leave {
        /// Which node this host was.
        #[arg(long)]
        node: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make declared networks on this host, or bring them into line with their files: after a file was copied here, and
    /// after each boot.
    Apply {
        /// The networks; none means all that are declared here.
        names: Vec<String>,
    },
    /// Declared networks.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a network's declaration, for you to distribute.
    Show {
        /// The network.
        name: String,
        /// The CNI configuration of this node instead.
        #[arg(long, value_name = "NODE")]
        cni: Option<String>,
    },
    /// Remove a network that has no sandboxes from this host, and its declaration.
    Delete {
        /// The network.
        name: String,
    },
}

pub(super) fn run(command: &Command, arguments: &Net) -> Result<ExitCode, CliError> {
    let directory = arguments.directory();
    match command {
        Command::Create(create) => {
            let declaration = create.declaration()?;
            if directory.find(&declaration.name)?.is_some() {
                return Err(DeclarationError::Exists(directory.path(&declaration.name)).into());
            }
            put(&directory, arguments, &declaration)?;
        }
        Command::Node { command } => {
            put(&directory, arguments, &command.changed(&directory)?)?;
        }
        Command::Group { command } => {
            put(&directory, arguments, &command.changed(&directory)?)?;
        }
        Command::Sync { name, nodes, forget, remote, options, timeout, json } => {
            let declaration = directory.load(name)?;
            let names: Vec<&str> = forget.iter().map(String::as_str).collect();
            if let Some(stranger) = directory.forget(name, &names)?.first() {
                let why = format!("`{stranger}` was not given it from here");
                return Err(DeclarationError::NotANode { network: name.clone(), why }.into());
            }
            let remote = Remote::new(remote, options.clone(), Duration::from_secs(*timeout))?;
            let reports = sync(&directory, arguments, &declaration, nodes, &remote)?;
            if *json {
                print_json(&reports)?;
            } else {
                print!("{}", table::reports(&declaration, &reports));
            }
            let failed = |report: &Report| matches!(report.outcome, Outcome::Failed { .. });
            return Ok(if reports.iter().any(failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        Command::Install { node, json } => {
            let declaration = Declaration::parse(&standard_input()?)?;
            let installed = install(&directory, arguments, &declaration, node.as_deref())?;
            if *json {
                print_json(&installed)?;
            } else {
                print!("{}", said(&declaration, &installed));
            }
        }
        Command::Leave { node, json } => {
            let declaration = Declaration::parse(&standard_input()?)?;
            let left = directory.leave(&Host::new()?, &declaration, node, &arguments.store(None))?;
            if *json {
                print_json(&left)?;
            } else {
                println!("network {}: this host has nothing of it any more", declaration.name);
            }
        }
        Command::Apply { names } => {
            let all = if names.is_empty() { directory.list()? } else { names.clone() };
            let mut failed = false;
            for name in &all {
                let applied = directory.load(name).map_err(CliError::from).and_then(|declaration| {
                    Ok(said(&declaration, &install(&directory, arguments, &declaration, None)?))
                });
                match applied {
                    Ok(text) => print!("{text}"),
                    Err(error) => {
                        eprintln!("skep: network {name}: {error}");
                        failed = true;
                    }
                }
            }
            return Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        Command::List { json } => {
            let all =
                directory.list()?.iter().map(|name| directory.load(name)).collect::<Result<Vec<_>, _>>()?;
            if *json {
                print_json(&all)?;
            } else {
                print!("{}", table::declarations(&all));
            }
        }
        Command::Show { name, cni } => {
            let declaration = directory.load(name)?;
            match cni {
                None => print!("{}", declaration.to_text()?),
                Some(node) => print_json(&directory.conflist(&declaration, node)?)?,
            }
        }
        Command::Delete { name } => {
            if directory.find(name)?.is_none() && arguments.store(None).network(name)?.is_none() {
                println!("network {name}: there is nothing of it on this host");
            }
            directory.delete(&Host::new()?, name, &arguments.store(None))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn install(
    directory: &Directory,
    arguments: &Net,
    declaration: &Declaration,
    node: Option<&str>,
) -> Result<Installed, CliError> {
    Ok(directory.install(&Host::new()?, declaration, node, arguments.data_dir.as_deref())?)
}

/// Puts a declaration into force where this host is one of its nodes; else only writes it down.
fn put(directory: &Directory, arguments: &Net, declaration: &Declaration) -> Result<(), CliError> {
    if declaration.local(None, &host_addresses()?).is_ok() {
        print!("{}", said(declaration, &install(directory, arguments, declaration, None)?));
    } else {
        directory.save(declaration)?;
        println!(
            "network {}: revision {}; this host is none of its nodes",
            declaration.name, declaration.revision
        );
        if arguments.store(None).network(&declaration.name)?.is_some() {
            println!("this host still has the network: skep net delete {} takes it away", declaration.name);
        }
    }
    if declaration.nodes.len() > 1 {
        println!("next: skep net sync {}", declaration.name);
    }
    Ok(())
}

fn said(declaration: &Declaration, installed: &Installed) -> String {
    format!("network {}: revision {}, as node {}\n", declaration.name, installed.revision, installed.node)
}

/// Every node, and every host that is none any more, or the nodes that were named; this host without ssh.
fn sync(
    directory: &Directory,
    arguments: &Net,
    declaration: &Declaration,
    names: &[String],
    remote: &Remote,
) -> Result<Vec<Report>, CliError> {
    if let Some(name) = names.iter().find(|name| declaration.find(name).is_none()) {
        return Err(DeclarationError::NotANode {
            network: declaration.name.clone(),
            why: format!("`{name}` is none of its nodes"),
        }
        .into());
    }
    let wanted = declaration.nodes.iter().filter(|node| names.is_empty() || names.contains(&node.name));
    let local = declaration.local(None, &host_addresses()?).ok().map(|node| node.name.clone());
    let (here, others): (Vec<_>, Vec<_>) = wanted.partition(|node| Some(&node.name) == local.as_ref());
    let mut reports = Vec::new();
    for node in here {
        let outcome = match install(directory, arguments, declaration, Some(&node.name)) {
            Ok(Installed { changed: true, .. }) => Outcome::Changed,
            Ok(_) => Outcome::Unchanged,
            Err(error) => Outcome::Failed { why: error.to_string() },
        };
        reports.push(Report { node: node.name.clone(), destination: "this host".to_owned(), outcome });
    }
    let gone = directory.will_know(declaration, &others)?;
    reports.extend(remote.sync(declaration, &others)?);
    if names.is_empty() {
        let left = remote.dismiss(declaration, &gone.iter().collect::<Vec<_>>())?;
        let done = left.iter().filter(|report| report.outcome == Outcome::Left);
        directory.forget(&declaration.name, &done.map(|report| report.node.as_str()).collect::<Vec<_>>())?;
        reports.extend(left);
    }
    Ok(reports)
}
