//! Making a sandbox, with everything undone when that fails.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skep_protocol::{Endpoint, PROTOCOL_VERSION, Session, api};

use super::dir::{SandboxDir, Sandboxes};
use super::forward::Forwarder;
use super::isolate::isolate;
use super::record::{self, SandboxRecord};
use super::undo::{self, UndoErrors};
use super::{
    RESOLVER, ROOT_TAG, SHARE_MOUNT_POINT, SHARE_TAG, Sandbox, SandboxError, SandboxRequest, State, Timings,
    cmdline,
};
use crate::cgroup::{Cgroup, CgroupPath};
use crate::config::{Channel, Config};
use crate::guest::{Guest, GuestOs};
use crate::hypervisor::{self, ConsolePort, Place, Share, Vm, VmSpec, Vsock};
use crate::journal::{Entry, Journal};
use crate::network::Network;
use crate::os::{ProcessIdentity, random};

/// The guest's own address there: each VM has a backend of its own, so all may have the same.
const VSOCK_CID: u32 = 3;
/// Bytes of entropy that a guest is given.
const ENTROPY: usize = 64;
/// How long the news of a VM's end may take after its channel has closed.
const NEWS: Duration = Duration::from_millis(500);
/// Longest id or namespace, as containerd has it and more.
const MOST_NAME: usize = 256;
/// Longest hostname, of Linux.
const MOST_HOSTNAME: usize = 64;

/// Undoes what was made of a sandbox unless it is told that all went well.
struct Rollback {
    made: Option<(SandboxDir, Arc<Journal>)>,
}

impl Rollback {
    fn undo(&mut self) -> Result<(), UndoErrors> {
        match self.made.take() {
            Some((dir, journal)) => undo::undo_all(&dir, &journal),
            None => Ok(()),
        }
    }
}

impl Drop for Rollback {
    /// Reached only when the future is dropped: nobody is left to hear of an error, but the journal stays.
    fn drop(&mut self) {
        if let Err(e) = self.undo() {
            tracing::error!("{e}");
        }
    }
}

pub(super) async fn create(config: &Config, request: SandboxRequest) -> Result<Sandbox, SandboxError> {
    let timings = Timings::default();
    check(&request)?;
    // What can be refused without a trace comes first.
    let guest = Guest::load(config.guest.dir_of(request.os), request.os)?;
    let driver = hypervisor::driver(config)?;
    let (dir, journal) = Sandboxes::of(&config.state_dir).create(&request.namespace, &request.id)?;
    let journal = Arc::new(journal);
    let mut rollback = Rollback { made: Some((dir.clone(), Arc::clone(&journal))) };
    let made = async {
        let record = SandboxRecord {
            version: SandboxRecord::VERSION,
            namespace: request.namespace.clone(),
            id: request.id.clone(),
            owner: ProcessIdentity::own().map_err(hypervisor::HypervisorError::from)?,
            created_s: since_epoch().as_secs(),
            hypervisor: driver.name().to_owned(),
            kernel_release: guest.manifest().kernel_release.clone(),
            options: request.options,
        };
        record::write(&dir.file("sandbox.json"), &record)?;
        isolate(&journal, dir.share())?;
        timings.mark("directory");
        let mut spec = spec(config, &request, &guest, &dir)?;
        let room = request.options.interfaces.get();
        let network = Network::open(&request.network, room, &spec.name, dir.path(), &journal)?;
        spec.nics = network.nics();
        let (netns, taps) = (network.namespace(), network.taps()?);
        let cgroup =
            request.cgroup.as_ref().map(|path| counted(path, &spec, &journal)).transpose()?.flatten();
        let place = Place {
            dir: dir.path().to_owned(),
            netns,
            taps,
            cgroup: cgroup.clone(),
            journal: Arc::clone(&journal),
        };
        let boot = async {
            let vm = driver.boot(spec, place).await?;
            for phase in vm.phases() {
                timings.mark_when(phase.name, phase.at);
            }
            timings.mark("vmm-started");
            let session = connect(config, &vm).await?;
            timings.mark("agent-answered");
            match introduce(config, &request, &session, &timings).await {
                Ok(()) => Ok((vm, session)),
                Err(e) => Err(reason_of(e, &vm).await),
            }
        };
        // The network is made while the VM boots. Whichever fails first ends the other.
        let connect = async {
            if network.connect(&journal).await? {
                timings.mark("network");
            }
            Ok(())
        };
        let ((vm, session), ()) = tokio::try_join!(boot, connect)?;
        if let Some(text) = network.resolver() {
            record::write_text(&dir.file(RESOLVER), &text)?;
        }
        Ok((vm, session, network, cgroup))
    }
    .await;
    match made {
        Ok((vm, session, network, cgroup)) => {
            rollback.made = None;
            let forwarder = Forwarder::start(&network, &session);
            let sandbox = Sandbox {
                id: request.id,
                os: request.os,
                options: request.options,
                dir,
                journal,
                network: Arc::new(network),
                cgroup,
                vm,
                session,
                timings,
                stop_limit: config.timeouts.stop_s.duration(),
                state: Mutex::new(State::Ready),
                forwarder,
                destroying: tokio::sync::Mutex::new(()),
            };
            if let Err(e) = sandbox.save_timings() {
                tracing::warn!("{e}");
            }
            Ok(sandbox)
        }
        Err(source) => {
            let undone = undo::blocking(move || rollback.undo()).await;
            Err(match undone {
                Ok(()) => source,
                Err(undo) => SandboxError::RolledBack { source: Box::new(source), undo },
            })
        }
    }
}

fn check(request: &SandboxRequest) -> Result<(), SandboxError> {
    let refused = |field, reason: &str| Err(SandboxError::Request { field, reason: reason.to_owned() });
    for (field, name) in [("namespace", &request.namespace), ("id", &request.id)] {
        if name.is_empty() || name.len() > MOST_NAME || name.contains('\0') {
            return refused(
                field,
                &format!("`{name}` is empty, longer than {MOST_NAME} bytes, or contains a zero"),
            );
        }
    }
    if let Some(hostname) = &request.hostname
        && (hostname.len() > MOST_HOSTNAME || hostname.contains('\0'))
    {
        return refused(
            "hostname",
            &format!("`{hostname}` is longer than {MOST_HOSTNAME} bytes or contains a zero"),
        );
    }
    Ok(())
}

fn spec(
    config: &Config,
    request: &SandboxRequest,
    guest: &Guest,
    dir: &SandboxDir,
) -> Result<VmSpec, SandboxError> {
    let console = config.agent.channel == Channel::Console;
    // The guest's own tree comes first, since it is what its kernel waits for.
    let root = guest.root().map(|path| Share { tag: ROOT_TAG.into(), path, readonly: true });
    let share = Share { tag: SHARE_TAG.into(), path: dir.share().to_owned(), readonly: false };
    Ok(VmSpec {
        name: vm_name(dir)?,
        os: guest.os(),
        kernel: guest.kernel(),
        initramfs: guest.initramfs(),
        cmdline: cmdline::of(config, guest.os()),
        memory: request.options.memory,
        vcpus: request.options.vcpus,
        shares: root.into_iter().chain([share]).collect(),
        disks: Vec::new(),
        nics: Vec::new(),
        console_ports: if console {
            vec![ConsolePort { name: "skep.agent".into(), socket: "agent.sock".into() }]
        } else {
            Vec::new()
        },
        rng: true,
        vsock: (!console).then_some(Vsock { cid: VSOCK_CID, port: cmdline::VSOCK_PORT }),
    })
}

/// The cgroup where the VMM is counted and limited, made unless it is there.
fn counted(path: &CgroupPath, spec: &VmSpec, journal: &Journal) -> Result<Option<Arc<Cgroup>>, SandboxError> {
    let record = || {
        journal.record(Entry::Cgroup { path: path.clone() })?;
        Ok::<_, SandboxError>(())
    };
    let Some(cgroup) = Cgroup::open(path, record)? else { return Ok(None) };
    if let Some(limit) = cgroup.memory_limit()
        && limit < hypervisor::memory_need(spec)
    {
        tracing::warn!("{}", hypervisor::too_little_memory(&cgroup, spec));
    }
    Ok(Some(Arc::new(cgroup)))
}

/// The VM's name, which no other has: the same sandbox may exist under another state directory, and whoever undoes this
/// one's journal destroys the VM that it names.
fn vm_name(dir: &SandboxDir) -> Result<String, SandboxError> {
    let mut tail = [0; 4];
    random(&mut tail).map_err(SandboxError::Random)?;
    Ok(format!("skep-{}-{}", dir.name(), crate::guest::hex(&tail)))
}

/// Waits for the agent, or for the end of the VM.
async fn connect(config: &Config, vm: &Arc<dyn Vm>) -> Result<Session, SandboxError> {
    let endpoint: &Endpoint = vm.agent_endpoint();
    tokio::select! {
        exit = vm.wait() => Err(SandboxError::Ended { exit }),
        session = Session::connect(endpoint, config.timeouts.boot_s.duration()) => {
            session.map_err(|source| SandboxError::Connect {
                source,
                acceleration: vm.acceleration().to_owned(),
                console: vm.console_tail(),
            })
        }
    }
}

/// When the VM ended meanwhile, that is the reason of an error and not what its end did to a call.
async fn reason_of(error: SandboxError, vm: &Arc<dyn Vm>) -> SandboxError {
    match tokio::time::timeout(NEWS, vm.wait()).await {
        Ok(exit) => SandboxError::Ended { exit },
        Err(_) => error,
    }
}

/// Tells the guest who it is.
async fn introduce(
    config: &Config,
    request: &SandboxRequest,
    session: &Session,
    timings: &Timings,
) -> Result<(), SandboxError> {
    let mut entropy = vec![0; ENTROPY];
    random(&mut entropy).map_err(SandboxError::Random)?;
    let share = api::Share {
        tag: SHARE_TAG.into(),
        mount_point: SHARE_MOUNT_POINT.into(),
        readonly: false,
        options: share_options(request.os).into(),
        ..api::Share::default()
    };
    let call = api::CreateSandboxRequest {
        protocol_version: PROTOCOL_VERSION,
        sandbox_id: request.id.clone(),
        hostname: request.hostname.clone().unwrap_or_default(),
        realtime_ns: i64::try_from(since_epoch().as_nanos()).unwrap_or(i64::MAX),
        entropy,
        shares: vec![share],
        shm_bytes: request.settings.shm_bytes.unwrap_or_default(),
        sysctls: request.settings.sysctls.clone(),
        ..api::CreateSandboxRequest::default()
    };
    let agent = session.agent().with_timeout(config.timeouts.call_s.duration());
    let answer = agent.create_sandbox(&call).await?;
    timings.mark("sandbox-created");
    tracing::info!(
        sandbox = request.id,
        kernel = answer.kernel_release,
        agent = answer.agent_version,
        "ready after {} ms",
        timings.elapsed().as_millis()
    );
    Ok(())
}

/// Options of the guest's 9p client.
fn share_options(os: GuestOs) -> &'static str {
    match os {
        // Inode numbers may collide between the host's mounts, and a cache would mix their files up. The first attach
        // is by name, and bhyve's server lets its user do what that name may on the host.
        GuestOs::Linux => "cache=none,msize=512000,uname=root",
        // p9fs(4) has none for these: it attaches by the name of root, and asks for 8 KiB at a time.
        GuestOs::FreeBsd => "",
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PodOptions;

    fn request(id: &str) -> SandboxRequest {
        SandboxRequest {
            namespace: "ns".into(),
            id: id.into(),
            os: GuestOs::Linux,
            hostname: None,
            options: PodOptions::defaults(&Config::default()),
            network: crate::network::NetworkRequest::Own,
            settings: crate::sandbox::GuestSettings::default(),
            cgroup: None,
        }
    }

    #[test]
    fn names_that_make_no_sense_are_refused() {
        check(&request("web-1")).unwrap();
        for bad in ["", "a\0b", &"x".repeat(300)] {
            assert!(check(&request(bad)).unwrap_err().to_string().starts_with("sandbox id: "));
        }
        let hostname = Some("h".repeat(65));
        let error = check(&SandboxRequest { hostname, ..request("a") }).unwrap_err();
        assert!(error.to_string().starts_with("sandbox hostname: "), "{error}");
    }

    #[tokio::test]
    async fn a_missing_guest_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let text = format!("state_dir = '{0}/s'\n[guest]\ndir = '{0}/guest'", state.path().display());
        let config = Config::parse(&text, "test").unwrap();
        let error = create(&config, request("a")).await.unwrap_err().to_string();
        assert!(error.contains("cargo xtask guest"), "{error}");
        assert!(!state.path().join("s").exists());
    }

    /// A configuration whose VMM is a shell script, with a guest that fits.
    fn with_vmm(dir: &std::path::Path, script: &str, boot_s: u32) -> Config {
        let guest = dir.join("guest");
        std::fs::create_dir(&guest).unwrap();
        let manifest = crate::guest::example_manifest();
        for file in ["kernel", "initramfs"] {
            std::fs::write(guest.join(manifest["files"][file]["name"].as_str().unwrap()), "x").unwrap();
        }
        std::fs::write(guest.join(crate::guest::MANIFEST), manifest.to_string()).unwrap();
        // Written by another process: a program that some child of this one has open for writing cannot be run.
        let vmm = dir.join("vmm");
        let write = format!("printf '%s' \"$1\" > {0} && chmod +x {0}", vmm.display());
        let status = std::process::Command::new("sh").args(["-c", &write, "sh", script]).status().unwrap();
        assert!(status.success());
        let text = format!(
            "state_dir = '{0}/s'\nhypervisor = 'qemu'\n[guest]\ndir = '{0}/guest'\n[qemu]\nbinary = '{0}/vmm'\n\
             [timeouts]\nboot_s = {boot_s}\n",
            dir.display()
        );
        Config::parse(&text, "test").unwrap()
    }

    fn left(config: &Config) -> usize {
        Sandboxes::of(&config.state_dir).all().unwrap().len()
    }

    #[tokio::test]
    async fn a_vmm_that_fails_is_told_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let config = with_vmm(dir.path(), "#!/bin/sh\necho no such machine >&2\nexit 7\n", 60);
        let error = create(&config, request("a")).await.unwrap_err().to_string();
        assert!(error.contains("exit status 7") && error.contains("no such machine"), "{error}");
        assert_eq!(left(&config), 0);
    }

    #[tokio::test]
    async fn an_agent_that_never_answers_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("#!/bin/sh\necho $$ > {}\necho booting\nexec sleep 600\n", pid_file.display());
        let config = with_vmm(dir.path(), &script, 8);
        let error = create(&config, request("a")).await.unwrap_err();
        assert!(matches!(error, SandboxError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("last on its console: booting"), "{error}");
        let pid: u32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        assert!(!ProcessIdentity::of(pid).unwrap().is_some_and(|vmm| vmm.is_alive().unwrap()));
        assert_eq!(left(&config), 0);
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script =
            format!("#!/bin/sh\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 600\n", pid_file.display());
        let config = with_vmm(dir.path(), &script, 60);
        let vmm_runs = async {
            while !pid_file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            made = create(&config, request("a")) => panic!("{made:?}"),
            () = vmm_runs => {}
        }
        let pid: u32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        assert!(!ProcessIdentity::of(pid).unwrap().is_some_and(|vmm| vmm.is_alive().unwrap()));
        assert_eq!(left(&config), 0);
    }
}
