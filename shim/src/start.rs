//! `start`: finds or starts the shim of a container's sandbox and prints its address.

use std::{
    io::Write as _,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use skep::{
    cgroup::{self, CgroupPath},
    config::Config,
    os::ProcessIdentity,
};

use crate::{
    bundle::{Bundle, ShimState},
    cli::Args,
    input::{self, ConfigSource, Input},
    socket::{self, Claim},
};

/// Reads the configuration from where it is said to be.
pub(crate) fn load_config(source: &ConfigSource) -> anyhow::Result<Config> {
    Ok(match source {
        ConfigSource::Default => Config::load(None)?,
        ConfigSource::File(path) => Config::load(Some(path))?,
        ConfigSource::Text(text) => Config::parse(text, "runtime options in containerd's configuration")?,
    })
}

/// The bundle: `-bundle`, or else the working directory, as containerd has it.
pub(crate) fn bundle(args: &Args) -> anyhow::Result<Bundle> {
    let dir: PathBuf = match &args.bundle {
        Some(dir) => std::path::absolute(dir)?,
        None => std::env::current_dir().context("the working directory, which should be the bundle")?,
    };
    Ok(Bundle::new(dir))
}

/// Does it. What goes wrong is for standard error, what goes right prints nothing but the address.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let bundle = bundle(args)?;
    let bytes = input::read(std::io::stdin().as_fd())?;
    let input = Input::decode(&bytes, &args.namespace, &args.id)?;
    // Whatever is wrong with the configuration is told here, where containerd shows it to the user.
    let config = load_config(&input.config)?;
    let group = bundle.group(&args.id)?;
    let cgroup = input
        .shim_cgroup
        .as_deref()
        .map(CgroupPath::parse)
        .transpose()
        .context("option ShimCgroup")?
        .flatten();
    let path = socket::path(&config.state_dir, &args.namespace, &group);

    let mut state = ShimState::new(group, path.clone(), input.config);
    state.ttrpc_address = input
        .ttrpc_address
        .or_else(|| std::env::var("TTRPC_ADDRESS").ok())
        .filter(|address| !address.is_empty());
    bundle.write_state(&state)?;
    if let Claim::Bound(listener) = socket::claim(&path)? {
        match spawn(args, &bundle, listener.into(), cgroup.as_ref()) {
            Ok(server) => {
                state.server = Some(server);
                bundle.write_state(&state)?;
            }
            Err(error) => {
                socket::remove(&path)?;
                return Err(error);
            }
        }
    }
    let address = socket::address(&path);
    bundle.write_address(&address)?;
    let mut stdout = std::io::stdout();
    write!(stdout, "{}", answer(&address, bundle.is_of_sandbox()))
        .and_then(|()| stdout.flush())
        .context("standard output")
}

/// What containerd is told. A plain address means task API v2, which every version takes. From the shim of a sandbox of
/// its Sandbox API containerd has to hear of v3: else it would start one more shim for each container of the sandbox
/// whose specification does not name it.
fn answer(address: &str, of_sandbox: bool) -> String {
    if !of_sandbox {
        return address.to_owned();
    }
    serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }).to_string()
}

/// Starts the shim with the listening socket as its standard input, in the cgroup that the caller named.
fn spawn(
    args: &Args,
    bundle: &Bundle,
    listener: OwnedFd,
    cgroup: Option<&CgroupPath>,
) -> anyhow::Result<ProcessIdentity> {
    let program = std::env::current_exe().context("the path of this program")?;
    let mut command = Command::new(&program);
    command
        .args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address])
        .arg("-bundle")
        .arg(bundle.dir());
    if args.debug {
        command.arg("-debug");
    }
    command.arg("serve").stdin(Stdio::from(listener)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let identity = ProcessIdentity::of(child.id())?.ok_or_else(|| {
        anyhow::anyhow!("the shim (process {}) ended as soon as it was started", child.id())
    })?;
    if let Some(path) = cgroup
        && let Err(error) = cgroup::join(path, child.id())
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error).context("option ShimCgroup");
    }
    yield_to_daemon(child.id());
    Ok(identity)
}

/// When memory runs out, the kernel is to take shims before containerd, as its own shim asks for.
#[cfg(target_os = "linux")]
fn yield_to_daemon(pid: u32) {
    const LEAST_VALUABLE: i32 = 1000;
    let Some(parent) = rustix::process::getppid() else { return };
    let path = |pid: i32| format!("/proc/{pid}/oom_score_adj");
    let Ok(text) = std::fs::read_to_string(path(parent.as_raw_nonzero().get())) else { return };
    let Ok(score) = text.trim().parse::<i32>() else { return };
    // Without the right to change it, it stays as inherited, which is containerd's.
    let _ = std::fs::write(path(pid.cast_signed()), (score + 1).min(LEAST_VALUABLE).to_string());
}

#[cfg(not(target_os = "linux"))]
fn yield_to_daemon(_pid: u32) {}
