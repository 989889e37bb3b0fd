//! Hearing of a process's end.

use std::sync::Arc;

use super::{
    Exit, Guest, Process,
    guest::{GuestEnd, NEWS, explain},
};

/// Records the process's exit when it comes, or its loss.
pub(super) fn watch(guest: &Arc<dyn Guest>, process: &Arc<Process>) {
    let (guest, process) = (Arc::clone(guest), Arc::clone(process));
    tokio::spawn(async move {
        let agent = guest.session().agent();
        let request = process.request();
        let answer = tokio::select! {
            answer = agent.wait_process(&request) => answer,
            end = guest.ended() => {
                process.ended(Exit::with_guest(end));
                return;
            }
        };
        let exit = match answer {
            Ok(answer) => Exit::answered(&answer),
            Err(error) => {
                // Nobody will ever hear of this process again: it must not go on.
                let lost = explain(&*guest, "waiting for the process", error).await;
                guest.kill().await;
                let end = tokio::time::timeout(NEWS, guest.ended()).await;
                let out_of_memory = end.is_ok_and(|end| end.out_of_memory);
                Exit::with_guest(GuestEnd { reason: lost.to_string(), out_of_memory })
            }
        };
        process.ended(exit);
    });
}
