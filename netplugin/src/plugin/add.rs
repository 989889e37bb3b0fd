//! ADD.

use ipnet::IpNet;

use super::settle::{check_group, conflict, network_of, settle};
use super::{Plugin, rebuild, undo};
use crate::cni::{AddResult, Attach, CniError, Dns, Interface, IpConfig, Route};
use crate::datapath::{Datapath, DatapathError};
use crate::ipam::{Allocator, IpamConfig, IpamError, Lease};
use crate::mac::Mac;
use crate::network::{Address, Attachment, Kind, Network, StateError};
use crate::policy::from_annotations;

impl<D: Datapath> Plugin<'_, D> {
    /// ADD: attaches a container.
    pub fn add(&self, attach: &Attach) -> Result<AddResult, CniError> {
        match self.add_once(attach) {
            // Perhaps by a container that is no more, and of which nobody said DEL.
            Err(error) if error.is_taken() && self.undo_the_dead()? => self.add_once(attach),
            result => result,
        }
    }

    fn add_once(&self, attach: &Attach) -> Result<AddResult, CniError> {
        let (mut network, mut attachment) = self.draft(attach)?;
        let earlier = self.store.attachment(&attachment.network, &attachment.id)?;
        if earlier.as_ref().is_some_and(|earlier| self.datapath.netns_lives(earlier)) {
            return Err(already(&attachment));
        }
        self.datapath.validate(&network, Some(&attachment))?;
        if earlier.is_some() {
            // Its namespace is gone, and nobody said DEL: a runtime that was killed, or records that outlived a boot.
            self.del(attach)?;
        }
        let mut dns = self.conf.dns.clone();
        if self.conf.ipam.asks_on_the_interface() {
            return self.add_and_ask(network, attachment, dns);
        }
        let delegated = matches!(self.conf.ipam, IpamConfig::Delegated(_));
        if delegated {
            let given = self.delegated("ADD")?.unwrap_or_default();
            self.take(&mut network, &mut attachment, addresses_of(&given), given.routes);
            if dns == Dns::default() {
                dns = given.dns;
            }
        }
        let made = self.make(&mut network, &mut attachment);
        if let Err(error) = made {
            let mut errors = vec![error];
            if delegated && !matches!(errors[0], CniError::AlreadyAttached { .. }) {
                errors.extend(self.delegated("DEL").err());
            }
            return Err(CniError::collect(errors)
                .err()
                .unwrap_or(CniError::NotReady("nothing failed".to_owned())));
        }
        Ok(self.result(&network, &attachment, dns))
    }

    /// ADD where the addresses are asked for on the interface itself, by DHCP: it is made without any first, and may
    /// do nothing but ask.
    fn add_and_ask(
        &self,
        mut network: Network,
        mut attachment: Attachment,
        mut dns: Dns,
    ) -> Result<AddResult, CniError> {
        self.make(&mut network, &mut attachment)?;
        let given = if self.asks_itself() {
            self.lease_address(&network, &attachment)
        } else {
            self.delegated("ADD").map(Option::unwrap_or_default)
        };
        let asked = given.and_then(|given| {
            self.take(&mut network, &mut attachment, addresses_of(&given), given.routes);
            if dns == Dns::default() {
                dns = given.dns;
            }
            if attachment.addresses.is_empty() {
                return Err(IpamError::NoAddress.into());
            }
            let _lock = self.store.lock()?;
            self.check_addresses(&attachment)?;
            // The record knows the addresses before anything else does.
            self.write_down(&attachment)?;
            Ok(())
        });
        let given =
            asked.and_then(|()| self.datapath.give_addresses(&network, &attachment).map_err(CniError::from));
        if let Err(error) = given {
            // The lease first: it is given back by the interface.
            let mut errors = vec![error];
            errors.extend(self.delegated("DEL").err());
            errors.extend(undo(self.datapath, &self.store, &attachment));
            return Err(if errors.len() == 1 { errors.remove(0) } else { CniError::Several(errors) });
        }
        Ok(self.result(&network, &attachment, dns))
    }

    /// The records as far as they are known before there are addresses. Nothing is changed.
    fn draft(&self, attach: &Attach) -> Result<(Network, Attachment), CniError> {
        let conf = self.conf;
        let (policy, group) = from_annotations(&conf.runtime.annotations, &conf.policy).map_err(|error| {
            crate::cni::ConfigError::Field { field: "runtimeConfig", why: error.to_string() }
        })?;
        let strange = conf.policy.groups.as_ref().zip(group.as_ref());
        let wrong = strange.and_then(|(groups, group)| groups.check_declared(group).err());
        let lists = [&policy.egress, &policy.ingress];
        if let Some(why) = wrong.or_else(|| conf.policy.wrong(lists, conf.uplink.vpc.is_some())) {
            let why = format!("the pod's annotation: {why}");
            return Err(crate::cni::ConfigError::Field { field: "runtimeConfig", why }.into());
        }
        let mut network = network_of(conf);
        network.groups.extend(conf.policy.undeclared(group.iter().chain(policy.named_groups())).cloned());
        let id = Attachment::id_of(&conf.name, &attach.container_id, &attach.ifname);
        let mac = conf.runtime.mac.or(attach.args.mac);
        let netns = attach.netns.as_deref().unwrap_or_default();
        let mut attachment = Attachment {
            version: Attachment::VERSION,
            host_ifname: Attachment::host_ifname_of(&id),
            container_id: attach.container_id.clone(),
            ifname: attach.ifname.clone(),
            network: conf.name.clone(),
            netns: netns.to_owned(),
            netns_cookie: self.datapath.netns_cookie(netns)?,
            kind: self.datapath.kind_for(netns),
            bridge: conf.bridge.clone(),
            mac: mac.unwrap_or_else(|| Mac::derive(&[&conf.name, &attach.container_id, &attach.ifname])),
            mtu: 0,
            addresses: Vec::new(),
            routes: Vec::new(),
            policy,
            group,
            ports: conf.runtime.port_mappings.clone(),
            bandwidth: conf.runtime.bandwidth,
            given: attach.args.tap.clone(),
            own_ipam: matches!(conf.ipam, IpamConfig::Own(_)),
            dhcp: conf.ipam.asks_on_the_interface(),
            lapsed: false,
            id,
        };
        if conf.prev_result.is_some() && conf.ipam != IpamConfig::None {
            let why = "an earlier plugin of the chain made the interface and gave its addresses (prevResult): leave it out here";
            return Err(crate::cni::ConfigError::Field { field: "ipam", why: why.to_owned() }.into());
        }
        if attachment.dhcp && !self.datapath.takes_addresses_later() {
            let what = "ipam.type dhcp".to_owned();
            let why = "not on this system: an address must be there before the interface".to_owned();
            return Err(DatapathError::Unsupported { what, why }.into());
        }
        if attachment.dhcp && self.asks_itself() {
            self.check_dhcp(&network)?;
        }
        if let Some(previous) = &conf.prev_result {
            let existing =
                self.datapath.find_existing(&previous.interfaces, &attachment.netns, &attachment.ifname)?;
            attachment.kind = Kind::Chained;
            attachment.host_ifname = existing.host_ifname;
            attachment.mac = existing.mac;
            attachment.mtu = existing.mtu;
            network.bridge.clone_from(&existing.bridge);
            network.mtu = existing.mtu;
            attachment.bridge = existing.bridge;
            attachment.addresses = addresses_of(previous);
            if attachment.addresses.is_empty() {
                return Err(IpamError::NoAddress.into());
            }
        }
        Ok((network, attachment))
    }

    /// Takes over addresses and what follows from them.
    fn take(
        &self,
        network: &mut Network,
        attachment: &mut Attachment,
        addresses: Vec<Address>,
        routes: Vec<Route>,
    ) {
        attachment.routes = routes;
        // Who has addresses of another network's server has that network's gateway.
        if self.conf.is_gateway && !attachment.dhcp {
            for address in &addresses {
                let gateway =
                    address.gateway.and_then(|ip| IpNet::new(ip, address.address.prefix_len()).ok());
                network.gateways.extend(gateway.filter(|net| !network.gateways.contains(net)));
            }
        }
        if self.conf.is_default_gateway {
            for (any, ipv6) in
                [(IpNet::V4(ipnet::Ipv4Net::default()), false), (IpNet::V6(ipnet::Ipv6Net::default()), true)]
            {
                let gateway = addresses.iter().find_map(|one| one.gateway.filter(|ip| ip.is_ipv6() == ipv6));
                let there = attachment.routes.iter().any(|route| route.dst == any);
                if gateway.is_some() && !there {
                    attachment.routes.push(Route::new(any, gateway));
                }
            }
        }
        attachment.addresses = addresses;
    }

    /// Makes everything, or nothing.
    fn make(&self, network: &mut Network, attachment: &mut Attachment) -> Result<(), CniError> {
        {
            let lock = self.store.lock()?;
            if self.store.attachment(&attachment.network, &attachment.id)?.is_some() {
                return Err(already(attachment));
            }
            self.check_ports(attachment)?;
            let earlier = settle(self.datapath, &self.store, network)?;
            if attachment.kind != Kind::Chained {
                attachment.mtu = network.mtu;
            }
            let leased = self.lease(network, attachment)?;
            check_group(network, attachment)?;
            self.check_addresses(attachment)?;
            self.datapath.validate(network, Some(attachment))?;
            if earlier.as_ref() != Some(&*network) {
                self.store.save_network(network)?;
            }
            if let Some(used) = leased {
                self.store.save_used(&network.name, &used)?;
            }
            if let Err(error) = self.write_down(attachment) {
                // Undoing takes the lock itself.
                drop(lock);
                return Err(self.fail(attachment, error.into()));
            }
            let ensured = self.datapath.ensure_network(network, earlier.as_ref(), &|| self.store.load());
            if let Err(error) = ensured {
                drop(lock);
                return Err(self.fail(attachment, error.into()));
            }
        }
        self.datapath.attach(network, attachment).map_err(|error| self.fail(attachment, error.into()))
    }

    /// Undoes everything; the error of the step that failed comes first.
    fn fail(&self, attachment: &Attachment, error: CniError) -> CniError {
        let mut errors = vec![error];
        errors.extend(undo(self.datapath, &self.store, attachment));
        if errors.len() == 1 { errors.remove(0) } else { CniError::Several(errors) }
    }

    /// Gives the attachment addresses by our own allocator, if that is what the configuration says; what is taken
    /// then is still to be written.
    fn lease(
        &self,
        network: &mut Network,
        attachment: &mut Attachment,
    ) -> Result<Option<crate::ipam::Used>, CniError> {
        let IpamConfig::Own(own) = &self.conf.ipam else { return Ok(None) };
        let attach = self.call.attach.as_ref();
        let wanted = self.conf.runtime.wanted_ips(attach.map_or(&[], |attach| &attach.args.ips));
        if let Some(groups) = &network.policy.groups {
            groups
                .check_member(attachment.group.as_ref(), wanted.iter().copied())
                .map_err(IpamError::Group)?;
        }
        let group = attachment.group.clone();
        let allocator = Allocator::new(own).of(group.as_ref());
        let mut used = self.store.used(&network.name)?;
        let leases = match allocator.allocate(&mut used, &wanted) {
            // What a crash left in the bitmap may be all that stands in the way.
            Err(IpamError::Exhausted { .. } | IpamError::Taken(_)) => {
                used = rebuild(&self.store, &network.name, own, &used)?;
                allocator.allocate(&mut used, &wanted)?
            }
            result => result?,
        };
        let addresses = leases
            .into_iter()
            .map(|Lease { address, gateway }| Address { address, gateway: Some(gateway) })
            .collect();
        self.take(network, attachment, addresses, own.routes.clone());
        Ok(Some(used))
    }

    /// Looks for another sandbox of the bridge that has one of the addresses (given by another plugin): making the
    /// rules would find out as well, but undoing what was made until then would take the other's. The lock is held.
    fn check_addresses(&self, attachment: &Attachment) -> Result<(), CniError> {
        for ip in attachment.ips() {
            if let Some(owner) = self.store.owner_of_address(&attachment.bridge, ip, &attachment.id)? {
                let why =
                    format!("address {ip} belongs to another sandbox, container `{}`", owner.container_id);
                return Err(conflict(why));
            }
        }
        Ok(())
    }

    /// Looks for another sandbox that has one of the wanted ports. The lock is held.
    fn check_ports(&self, attachment: &Attachment) -> Result<(), CniError> {
        for port in &attachment.ports {
            if let Some(owner) = self.store.owner_of_port(port, &attachment.id)? {
                return Err(CniError::PortTaken { port: port.to_string(), owner: owner.container_id });
            }
        }
        Ok(())
    }

    /// Writes the record, and before it the claims that it makes good. The lock is held.
    fn write_down(&self, attachment: &Attachment) -> Result<(), StateError> {
        self.store.claim(attachment)?;
        self.store.save_attachment(attachment)
    }

    fn result(&self, network: &Network, attachment: &Attachment, mut dns: Dns) -> AddResult {
        if let Some(runtime) = &self.conf.runtime.dns {
            dns.nameservers.clone_from(&runtime.servers);
            dns.search.clone_from(&runtime.searches);
            dns.options.clone_from(&runtime.options);
        }
        if let Some(previous) = &self.conf.prev_result {
            return previous.clone();
        }
        let interface = |name: &str, mac: Option<Mac>, mtu: u32, sandbox: Option<String>| Interface {
            name: name.to_owned(),
            mac,
            mtu: Some(mtu),
            sandbox,
        };
        // All is made: that an address cannot be told is no reason to undo it.
        let of_host = |name: &str| self.datapath.mac(name).ok().flatten();
        let mut interfaces = vec![
            interface(&network.bridge, of_host(&network.bridge), network.mtu, None),
            interface(&attachment.host_ifname, of_host(&attachment.host_ifname), attachment.mtu, None),
            interface(
                &attachment.ifname,
                Some(attachment.mac),
                attachment.mtu,
                Some(attachment.netns.clone()),
            ),
        ];
        if attachment.kind == Kind::Tap && attachment.is_limited() {
            // The tap that a VM opens is not the port then.
            let shaper = Attachment::shaper_of(&attachment.id);
            interfaces.push(interface(&shaper, of_host(&shaper), attachment.mtu, None));
        }
        AddResult {
            interfaces,
            ips: attachment
                .addresses
                .iter()
                .map(|one| IpConfig { address: one.address, gateway: one.gateway, interface: Some(2) })
                .collect(),
            routes: attachment.routes.clone(),
            dns,
        }
    }
}

fn addresses_of(result: &AddResult) -> Vec<Address> {
    result.ips.iter().map(|ip| Address { address: ip.address, gateway: ip.gateway }).collect()
}

fn already(attachment: &Attachment) -> CniError {
    CniError::AlreadyAttached {
        container: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        network: attachment.network.clone(),
    }
}
