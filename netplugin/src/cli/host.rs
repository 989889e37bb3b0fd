//! This host's networks: state, repair, a change while they run.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;

use super::{CliError, Net, print_json, standard_input, table};
use crate::cni::NetConf;
use crate::datapath::{Datapath as _, Host};
use crate::network::Store;
use crate::plugin;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Networks and sandboxes: addresses, counters, and what is not as it should be (then the exit status is 1).
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Undo attachments whose namespace is gone, and networks without attachments.
    Gc {
        /// Remove, besides, what has our names and is in no record (see status). Only where this data directory is the
        /// host's one and only.
        #[arg(long)]
        orphans: bool,
    },
    /// Put back rules that somebody removed.
    Restore,
    /// Put them back whenever that happens, and renew the leases of addresses, until stopped.
    Watch,
    /// Replace a live sandbox's own policy by the one on standard input (JSON).
    Policy {
        /// The network.
        network: String,
        /// The container, or the beginning of its name, if no other one's begins so.
        container: String,
        /// Its interface.
        #[arg(default_value = "eth0")]
        ifname: String,
    },
    /// Make the network of a CNI configuration (or list) on standard input, or bring it into line; it stays without sandboxes.
    Up,
    /// Remove a network without sandboxes; see delete for a declared one.
    Down {
        /// The network.
        network: String,
    },
}

pub(super) fn run(command: &Command, arguments: &Net) -> Result<ExitCode, CliError> {
    let host = Host::new()?;
    let store = arguments.store(None);
    match command {
        Command::Status { json } => {
            let status = plugin::status(&host, &store)?;
            if *json {
                print_json(&status)?;
            } else {
                print!("{}", table::status(&status));
            }
            let sound = status.networks.iter().all(|network| {
                network.problems.is_empty() && network.attachments.iter().all(|one| one.problems.is_empty())
            });
            return Ok(if sound && status.orphans.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Gc { orphans } => {
            for undone in plugin::collect(&host, &store)? {
                println!("removed {undone}");
            }
            if *orphans {
                for orphan in plugin::remove_orphans(&host, &store)? {
                    println!("removed {orphan}");
                }
            }
        }
        Command::Restore => {
            if plugin::restore(&host, &store)? {
                println!("restored");
            }
        }
        Command::Watch => watch(&host, &store)?,
        Command::Policy { network, container, ifname } => {
            let policy = serde_json::from_slice(&standard_input()?).map_err(|error| CliError::Input {
                what: "the policy on standard input".to_owned(),
                why: error.to_string(),
            })?;
            let container = whole_name(&store, network, container)?;
            plugin::set_policy(&host, &store, network, &container, ifname, policy)?;
        }
        Command::Up => {
            let conf = NetConf::parse(&of_a_list(standard_input()?)?)?;
            plugin::up(&host, &arguments.store(Some(&conf)), &conf)?;
        }
        Command::Down { network } => {
            if store.network(network)?.is_none() {
                println!("network {network}: there is nothing of it on this host");
            }
            plugin::down(&host, &store, network)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a runtime makes of a list of plugins for ours (the specification's "Deriving execution configuration from plugin
/// configuration"), as administrators have it in a file; anything else as it is.
fn of_a_list(input: Vec<u8>) -> Result<Vec<u8>, CliError> {
    let Ok(Value::Object(mut list)) = serde_json::from_slice(&input) else { return Ok(input) };
    let Some(Value::Array(plugins)) = list.remove("plugins") else { return Ok(input) };
    let ours = plugins.into_iter().find(|plugin| plugin["type"] == "skep-cni");
    let Some(Value::Object(mut ours)) = ours else {
        let why = "has no plugin of type skep-cni".to_owned();
        return Err(CliError::Input { what: "the list of plugins on standard input".to_owned(), why });
    };
    for key in ["name", "cniVersion"] {
        ours.extend(list.remove_entry(key));
    }
    Ok(serde_json::to_vec(&ours)?)
}

/// The container that is meant: what is shown of one (`status`, a runtime's list) is the beginning of its name.
fn whole_name(store: &Store, network: &str, beginning: &str) -> Result<String, CliError> {
    let all: BTreeSet<String> = store.attachments(network)?.into_iter().map(|one| one.container_id).collect();
    let mut meant = all.iter().filter(|name| name.starts_with(beginning));
    match (meant.next(), meant.next()) {
        (Some(one), None) => Ok(one.clone()),
        (Some(_), Some(_)) if !all.contains(beginning) => Err(CliError::Input {
            what: format!("container `{beginning}`"),
            why: format!("more than one container's name on network {network} begins so"),
        }),
        // The one whose whole name it is, or nobody, which is for others to say.
        _ => Ok(beginning.to_owned()),
    }
}

/// Told of every removal; looks by itself now and then, should it not have been told.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How often is looked for leases that came since. Shorter ones than some of this are nobody's.
const LEASES_EVERY: Duration = Duration::from_secs(5);

fn keep_leases(store: &Store) {
    loop {
        let next = match Host::new() {
            Ok(host) => {
                let renewal = plugin::renew_leases(&host, store);
                for note in renewal.notes {
                    eprintln!("skep: {note}");
                }
                for error in renewal.errors {
                    eprintln!("skep: {error}");
                }
                renewal.next
            }
            Err(error) => {
                eprintln!("skep: leases of addresses are not renewed: {error}");
                LEASES_EVERY
            }
        };
        thread::sleep(next.clamp(Duration::from_secs(1), LEASES_EVERY));
    }
}

fn watch(host: &Host, store: &Store) -> Result<(), CliError> {
    let events = Host::watch()?;
    if host.is_dhcp_client() {
        let leases = store.clone();
        // Beside it: servers may take their time. It ends with the process.
        thread::spawn(move || keep_leases(&leases));
    }
    let mut failing = String::new();
    loop {
        match plugin::restore(host, store) {
            Ok(false) => failing.clear(),
            Ok(true) => {
                failing.clear();
                eprintln!("skep: somebody removed our rules; they are back");
            }
            // What is in the way may go: a call that holds the lock for long, a record that cannot be read.
            Err(error) => {
                let why = error.to_string();
                if why != failing {
                    eprintln!("skep: {why}; trying again");
                }
                failing = why;
            }
        }
        events.wait(LOOK_EVERY)?;
    }
}
