//! The CNI plugin's binary: without arguments the CNI speaks, by environment and standard input; with arguments an
//! administrator does.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use skep_cni::cni::{self, NetConf};
use skep_cni::datapath::Host;
use skep_cni::network::Store;
use skep_cni::plugin::{self, Status};

/// Skep's network: state, clean-up and changes while it runs. Called without arguments it is a CNI plugin.
#[derive(Parser)]
#[command(name = "skep-cni", version)]
struct Arguments {
    /// Where the records are.
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Networks and sandboxes: addresses, counters, and what is not as it should be.
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
    /// Put them back whenever that happens, until stopped.
    Watch,
    /// Replace a live sandbox's own policy by the one on standard input (JSON).
    Policy {
        /// The network.
        network: String,
        /// The container.
        container: String,
        /// Its interface.
        #[arg(default_value = "eth0")]
        ifname: String,
    },
    /// Make the network configured on standard input, or bring it into line; it stays without sandboxes.
    Up,
    /// Remove a network without sandboxes.
    Down {
        /// The network.
        network: String,
    },
}

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        return match administer(&Arguments::parse()) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("skep-cni: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if std::env::var_os("CNI_COMMAND").is_none() && std::io::stdin().is_terminal() {
        eprintln!("skep-cni: a CNI plugin, called by a container runtime; see skep-cni --help for the rest");
        return ExitCode::FAILURE;
    }
    let outcome = cni::run(|name| std::env::var(name).ok(), std::io::stdin().lock());
    if let Some(output) = outcome.output {
        println!("{output}");
    }
    if outcome.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn administer(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let store = |conf: Option<&NetConf>| {
        let configured = conf.and_then(|conf| conf.data_dir.clone());
        Store::new(
            arguments.data_dir.clone().or(configured).unwrap_or_else(|| Store::default_dir().to_owned()),
        )
    };
    let host = Host::new()?;
    match &arguments.command {
        Verb::Status { json } => {
            let status = plugin::status(&host, &store(None))?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print!("{}", table(&status));
            }
            let sound = status
                .networks
                .iter()
                .flat_map(|network| &network.attachments)
                .all(|one| one.problems.is_empty());
            return Ok(if sound && status.orphans.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Verb::Gc { orphans } => {
            for undone in plugin::collect(&host, &store(None))? {
                println!("removed {undone}");
            }
            if *orphans {
                for orphan in plugin::remove_orphans(&host, &store(None))? {
                    println!("removed {orphan}");
                }
            }
        }
        Verb::Restore => {
            if plugin::restore(&host, &store(None))? {
                println!("restored");
            }
        }
        Verb::Watch => watch(&host, &store(None))?,
        Verb::Policy { network, container, ifname } => {
            let policy = serde_json::from_slice(&input()?).context("the policy on standard input")?;
            plugin::set_policy(&host, &store(None), network, container, ifname, policy)?;
        }
        Verb::Up => {
            let conf = NetConf::parse(&input()?)?;
            plugin::up(&host, &store(Some(&conf)), &conf)?;
        }
        Verb::Down { network } => plugin::down(&host, &store(None), network)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn input() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(64 << 20).read_to_end(&mut bytes).context("standard input")?;
    Ok(bytes)
}

/// Told of every removal; looks by itself now and then, should it not have been told.
const LOOK_EVERY: Duration = Duration::from_secs(10);

fn watch(host: &Host, store: &Store) -> anyhow::Result<()> {
    let events = Host::watch()?;
    loop {
        if plugin::restore(host, store)? {
            eprintln!("skep-cni: somebody removed our rules; they are back");
        }
        events.wait(LOOK_EVERY)?;
    }
}

fn table(status: &Status) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for network in &status.networks {
        let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(",") };
        let _ = writeln!(
            text,
            "network {}  bridge {}  mtu {}  gateway {}  links {}  peers {}",
            network.name,
            network.bridge,
            network.mtu,
            list(network.gateways.iter().map(ToString::to_string).collect()),
            list(network.links.clone()),
            list(network.peers.iter().map(ToString::to_string).collect()),
        );
        for one in &network.attachments {
            let counters = &one.counters;
            let _ = writeln!(
                text,
                "  {:.12}/{}  {}  {}  ports {}  sent {} B  received {} B  refused {} out, {} in  spoofed {}",
                one.container_id,
                one.ifname,
                one.host_ifname,
                list(one.addresses.iter().map(ToString::to_string).collect()),
                list(one.ports.clone()),
                counters.sent_bytes,
                counters.received_bytes,
                counters.denied_out_packets,
                counters.denied_in_packets,
                counters.spoofed_packets,
            );
            for problem in &one.problems {
                let _ = writeln!(text, "    problem: {problem}");
            }
        }
    }
    for orphan in &status.orphans {
        let _ = writeln!(text, "orphan: {orphan} is in no record (skep-cni gc --orphans removes it)");
    }
    text
}
