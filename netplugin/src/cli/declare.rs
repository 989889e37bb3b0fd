//! Networks declared, and changed after that.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use super::CliError;
use crate::policy::{GroupName, PolicyError};
use crate::vpc::{Declaration, DeclarationError, Directory, NewNode, default_max_groups, default_max_nodes};
use crate::vxlan;

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name.
    name: String,
    /// VXLAN network identifier, 1 to 16777215.
    #[arg(long)]
    vni: u32,
    /// A subnet of the sandboxes' addresses (again for another family). Each node gives out a part of its own.
    #[arg(long = "subnet", value_name = "CIDR", required = true)]
    subnets: Vec<IpNet>,
    // Not doc comments: rustdoc would take the brackets for links.
    #[arg(
        long = "node",
        value_name = "NODE",
        required = true,
        help = "A host, as NAME=ADDRESS[,ADDRESS][,ssh=DESTINATION]: an address, IPv4 or IPv6 or one of each, and \
                where sync finds it if not by root@ADDRESS"
    )]
    nodes: Vec<NewNode>,
    /// How the hosts are joined.
    #[arg(long, default_value = "flood")]
    mode: Mode,
    /// UDP port.
    #[arg(long, default_value_t = 4789)]
    port: u16,
    /// Mode mesh: the network that the pairs' own addresses come from.
    #[arg(long, value_name = "CIDR")]
    peer_network: Option<IpNet>,
    /// How many hosts there can ever be (the subnets are cut into so many parts); by default half of the bits that groups
    /// leave of the smallest subnet, 255 for a /16 without groups.
    #[arg(long, value_name = "N")]
    max_nodes: Option<u16>,
    /// A group of sandboxes, for rules that speak of its members on all hosts (again for more).
    #[arg(long = "group", value_name = "NAME", value_parser = group_name)]
    groups: Vec<GroupName>,
    /// How many groups there can ever be (the subnets are cut into so many parts more); by default none without --group,
    /// and at least 7 with it.
    #[arg(long, value_name = "N")]
    max_groups: Option<u16>,
    /// Further fields of the plugin's configuration (JSON): policy, ipMasq, mtu, ...
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How hosts are joined.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Mode {
    /// One identifier, a list of peers.
    Flood,
    /// An identifier for each pair.
    Mesh,
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Add hosts. The others' sandboxes notice nothing. Then: skep net sync.
    Add {
        /// The network.
        network: String,
        #[arg(required = true, value_name = "NODE", help = "NAME=ADDRESS[,ADDRESS][,ssh=DESTINATION]")]
        nodes: Vec<NewNode>,
    },
    /// Remove hosts. The others' sandboxes notice nothing. Then: skep net sync.
    Remove {
        /// The network.
        network: String,
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        nodes: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Add groups. Then: skep net sync.
    Add {
        /// The network.
        network: String,
        /// Their names.
        #[arg(required = true, value_name = "NAME", value_parser = group_name)]
        groups: Vec<GroupName>,
    },
    /// Remove groups. A host that has sandboxes of one, or with rules about one, refuses. Then: skep net sync.
    Remove {
        /// The network.
        network: String,
        /// Their names.
        #[arg(required = true, value_name = "NAME", value_parser = group_name)]
        groups: Vec<GroupName>,
    },
}

pub(super) fn group_name(text: &str) -> Result<GroupName, PolicyError> {
    text.to_owned().try_into()
}

/// The next revision of what is declared here.
fn change(
    directory: &Directory,
    network: &str,
    change: impl FnOnce(&mut Declaration) -> Result<(), DeclarationError>,
) -> Result<Declaration, DeclarationError> {
    let mut declaration = directory.load(network)?;
    change(&mut declaration)?;
    declaration.revision += 1;
    declaration.validate()?;
    Ok(declaration)
}

impl NodeCommand {
    /// The declaration with the change, which is yet to be put into force.
    pub(super) fn changed(&self, directory: &Directory) -> Result<Declaration, DeclarationError> {
        match self {
            Self::Add { network, nodes } => change(directory, network, |declaration| {
                nodes.iter().try_for_each(|node| declaration.add_node(node))
            }),
            Self::Remove { network, nodes } => change(directory, network, |declaration| {
                nodes.iter().try_for_each(|node| declaration.remove_node(node))
            }),
        }
    }
}

impl GroupCommand {
    /// The declaration with the change, which is yet to be put into force.
    pub(super) fn changed(&self, directory: &Directory) -> Result<Declaration, DeclarationError> {
        match self {
            Self::Add { network, groups } => change(directory, network, |declaration| {
                groups.iter().try_for_each(|group| declaration.add_group(group))
            }),
            Self::Remove { network, groups } => change(directory, network, |declaration| {
                groups.iter().try_for_each(|group| declaration.remove_group(group))
            }),
        }
    }
}

impl Create {
    /// The first revision of the network.
    pub(super) fn declaration(&self) -> Result<Declaration, CliError> {
        let none = if self.groups.is_empty() { 0 } else { default_max_groups(self.groups.len()) };
        let max_groups = self.max_groups.unwrap_or(none);
        let mut declaration = Declaration {
            version: Declaration::VERSION,
            name: self.name.clone(),
            revision: 1,
            vni: self.vni,
            mode: match self.mode {
                Mode::Flood => vxlan::Mode::Flood,
                Mode::Mesh => vxlan::Mode::Mesh,
            },
            port: self.port,
            peer_network: self.peer_network,
            subnets: self.subnets.clone(),
            max_nodes: self.max_nodes.unwrap_or_else(|| default_max_nodes(&self.subnets, max_groups)),
            nodes: Vec::new(),
            retired: BTreeSet::new(),
            max_groups,
            groups: Vec::new(),
            retired_groups: Vec::new(),
            stations: Vec::new(),
            config: self.config.as_ref().map(read_config).transpose()?.unwrap_or_default(),
        };
        self.nodes.iter().try_for_each(|node| declaration.add_node(node))?;
        self.groups.iter().try_for_each(|group| declaration.add_group(group))?;
        declaration.validate()?;
        Ok(declaration)
    }
}

fn read_config(path: &PathBuf) -> Result<serde_json::Map<String, serde_json::Value>, CliError> {
    let wrong = |why: String| CliError::Input { what: path.display().to_string(), why };
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}
