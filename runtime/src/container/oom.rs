//! Hearing of processes that the guest's kernel killed for want of memory.

use std::{sync::Arc, time::Duration};

use skep_protocol::api;
use tokio::sync::watch;

use super::{Guest, Process};

/// The shortest time between two reports: a guest may count as it pleases.
const PAUSE: Duration = Duration::from_secs(1);

/// Asks the guest again and again until the container's init has exited; `told` has the last answer.
pub(super) fn watch(guest: &Arc<dyn Guest>, container: &str, init: &Arc<Process>, told: watch::Sender<u64>) {
    let (guest, container, init) = (Arc::clone(guest), container.to_owned(), Arc::clone(init));
    tokio::spawn(async move {
        let listen = async {
            loop {
                let seen = *told.borrow();
                let request = api::WaitOomRequest {
                    container_id: container.clone(),
                    seen,
                    ..api::WaitOomRequest::default()
                };
                match guest.session().agent().wait_oom(&request).await {
                    Ok(answer) if answer.oom_kills > seen => _ = told.send_replace(answer.oom_kills),
                    // Init has exited, of which its own watch tells.
                    Ok(_) => return,
                    Err(error) => return tracing::debug!(container, %error, "waiting for OOM kills"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = listen => {}
            _ = init.wait() => {}
        }
    });
}
