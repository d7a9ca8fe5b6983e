use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use api_grpc::services::containers::GetContainerRequest;
use api_grpc::services::diagnosis::WhyRequest;
use api_grpc::services::tasks::{
    CloseIoRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, KillRequest, ResizePtyRequest,
    StartRequest, WaitRequest,
};
use api_grpc::type_url;
use clap::{Args, Subcommand};
use client::Client;
use client::stdio::Fifos;
use prost_types::Any;
use tokio::signal::unix::{SignalKind, signal};

use crate::{spec, terminal};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Say how a task ended, or where it is stuck.
    Why {
        /// The container.
        id: String,
    },
}

pub(crate) async fn why(client: &Client, id: &str) -> Result<()> {
    let request = WhyRequest { container_id: id.to_owned() };
    let lines = match client.diagnosis().why(request).await {
        Ok(answer) => answer.into_inner().lines,
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            bail!("this daemon cannot tell: it is no gantryd")
        }
        Err(status) => return Err(status.into()),
    };
    for (number, line) in lines.iter().enumerate() {
        println!("{}{line}", if number == 0 { "" } else { "  " });
    }
    Ok(())
}

#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// Give it a terminal, connected to this one.
    #[arg(long, short)]
    tty: bool,
    /// Name of the process; a number of this program otherwise.
    #[arg(long)]
    exec_id: Option<String>,
    /// Directory of the FIFOs for standard streams.
    #[arg(long, default_value = "/run/gantry/fifo")]
    fifo_dir: PathBuf,
    /// The container.
    id: String,
    /// Program and arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Kill {
    /// Name or number of the signal.
    #[arg(long, short, default_value = "SIGTERM", value_parser = signal_number)]
    signal: u32,
    /// Every process of the container instead of the first.
    #[arg(long)]
    all: bool,
    /// The container.
    id: String,
}

pub(crate) async fn exec(client: &Client, exec: Exec) -> Result<u8> {
    let get = GetContainerRequest { id: exec.id.clone() };
    let record = client.containers().get(get).await?.into_inner().container.unwrap_or_default();
    let document =
        serde_json::from_slice(&record.spec.unwrap_or_default().value).context("the container's specification")?;
    let process = spec::exec_process(&document, &exec.command, exec.tty);
    let exec_id = exec.exec_id.unwrap_or_else(|| format!("exec-{}", std::process::id()));
    let fifos = Fifos::create(&exec.fifo_dir, &exec_id, true, exec.tty)?;
    let raw = exec.tty.then(terminal::Raw::enter).transpose()?;
    let copying = fifos.copy(tokio::io::stdout(), tokio::io::stderr())?;
    let (stdin, stdout, stderr) = fifos.paths();
    let request = ExecProcessRequest {
        container_id: exec.id.clone(),
        stdin,
        stdout,
        stderr,
        terminal: exec.tty,
        spec: Some(Any { type_url: type_url::PROCESS.into(), value: serde_json::to_vec(&process)? }),
        exec_id: exec_id.clone(),
    };
    client.tasks().exec(request).await?;
    let outcome = attach(client, &exec.id, &exec_id, &fifos).await;
    let deleted = client
        .tasks()
        .delete_process(DeleteProcessRequest { container_id: exec.id.clone(), exec_id: exec_id.clone() })
        .await;
    let code = outcome?;
    deleted?;
    copying.finish().await;
    drop(raw);
    u8::try_from(code).or_else(|_| bail!("the process ended with the status {code}"))
}

/// Starts a created process, connects standard input and the terminal's size to it, passes signals on, and waits for
/// its end; gives the exit status.
pub(crate) async fn attach(client: &Client, id: &str, exec_id: &str, fifos: &Fifos) -> Result<u32> {
    let wait = WaitRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
    let mut waiting = client.tasks();
    let exit = waiting.wait(wait);
    tokio::pin!(exit);
    client.tasks().start(StartRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() }).await?;
    resize(client, id, exec_id).await;
    let feeding = async {
        // Input that cannot be delivered because the process is gone is no error.
        let _ = fifos.feed(tokio::io::stdin()).await;
        let close = CloseIoRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), stdin: true };
        let _ = client.tasks().close_io(close).await;
    };
    tokio::pin!(feeding);
    let mut fed = false;
    let mut window = signal(SignalKind::window_change())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        let number = tokio::select! {
            reply = &mut exit => return Ok(reply?.into_inner().exit_status),
            () = &mut feeding, if !fed => { fed = true; continue }
            _ = window.recv() => { resize(client, id, exec_id).await; continue }
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
        };
        let request =
            KillRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), signal: number, all: false };
        // The process may have ended in the same moment; its exit tells.
        let _ = client.tasks().kill(request).await;
    }
}

/// Gives the process's terminal the size of ours; a process without one ignores it.
async fn resize(client: &Client, id: &str, exec_id: &str) {
    if let Some((width, height)) = terminal::size() {
        let request = ResizePtyRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), width, height };
        let _ = client.tasks().resize_pty(request).await;
    }
}

pub(crate) async fn kill(client: &Client, kill: Kill) -> Result<()> {
    let request = KillRequest { container_id: kill.id, exec_id: String::new(), signal: kill.signal, all: kill.all };
    client.tasks().kill(request).await?;
    Ok(())
}

/// Deletes a task that has ended; the container record stays.
pub(crate) async fn delete(client: &Client, id: &str) -> Result<()> {
    client.tasks().delete(DeleteTaskRequest { container_id: id.to_owned() }).await?;
    Ok(())
}

/// A signal by number, or by name with or without `SIG`.
fn signal_number(text: &str) -> Result<u32, String> {
    const NAMES: [(&str, u32); 16] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("WINCH", 28),
    ];
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(format!("{number} is no signal: want 1 to 64"))
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).ok_or_else(|| {
        format!("{text:?} is no signal: want a number or one of {}", NAMES.map(|(name, _)| name).join(" "))
    })
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGUSR1", 10)] {
            assert_eq!(signal_number(text), Ok(number));
        }
        for bad in ["", "0", "65", "SIGNONE", "-9"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
    }
}
