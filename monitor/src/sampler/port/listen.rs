//! Listener at a port: connects to its socket, and reads what the agent says. A port that hangs or floods holds up no
//! other.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    super::{Heartbeats, Missing, Reading},
    PortStream,
};
use flatline_qemu::{
    blocking::{UnderWay, within},
    discover::{Found, ListeningSocket, ThreadsTold, Vm, VmId},
    peer::{self, PeerError},
    text::error_chain,
};

/// How long it may take to find the socket, and to connect to it. Not measured: both are local.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// From one try to the next, where no QEMU listens, or it hung up.
const TRY_EVERY: Duration = Duration::from_secs(5);
/// As much is read at once, and nothing more for a while: thousands of beats a second are none.
const READ_BYTES: usize = 4096;
const READ_EVERY: Duration = Duration::from_millis(50);

/// The task that listens at a port; dropping this ends it.
#[derive(Debug)]
pub(crate) struct PortListener {
    said: Arc<Mutex<Said>>,
    task: JoinHandle<()>,
}

/// The socket to listen at.
struct Port {
    vm: VmId,
    socket: ListeningSocket,
    threads: ThreadsTold,
}

#[derive(Debug)]
struct Said {
    stream: PortStream,
    /// Why nothing can be heard now.
    deaf: Option<String>,
}

impl PortListener {
    /// Begins to listen at the port of a VM, if it has one.
    pub(crate) fn start(vm: &Vm) -> Option<Self> {
        let socket = vm.heartbeat_socket.as_ref()?.socket.clone();
        let port = Port { vm: vm.id, socket, threads: vm.threads };
        let deaf = Some("it is being connected to".to_owned());
        let said = Arc::new(Mutex::new(Said { stream: PortStream::default(), deaf }));
        let task = tokio::spawn(listen(port, said.clone()));
        Some(Self { said, task })
    }

    /// What was said so far; missing where something was, and nothing can be heard now.
    pub(crate) fn heartbeats(&self) -> Reading<Heartbeats> {
        let said = lock(&self.said);
        let beats = said.stream.heartbeats();
        match &said.deaf {
            Some(why) if beats.last.is_some() => {
                Err(Missing::new("heartbeats", format!("its port: {why}")))
            }
            _ => Ok(beats.clone()),
        }
    }
}

impl Drop for PortListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(port: Port, said: Arc<Mutex<Said>>) {
    let mut lookup = None;
    loop {
        let why = match connect(&port, &mut lookup).await {
            Ok(stream) => {
                {
                    let mut said = lock(&said);
                    said.stream.reconnected();
                    said.deaf = None;
                }
                read(stream, &said).await
            }
            Err(why) => why,
        };
        lock(&said).deaf = Some(why);
        sleep(TRY_EVERY).await;
    }
}

async fn connect(
    port: &Port,
    lookup: &mut UnderWay<Result<Found, PeerError>>,
) -> Result<UnixStream, String> {
    let (pid, socket, threads) = (port.vm.pid, port.socket.clone(), port.threads);
    let resolve = move || peer::resolve(pid, &socket, threads);
    let found = within(CONNECT_WITHIN, lookup, resolve).await;
    let found = found
        .ok_or_else(|| "looking up its path takes too long".to_owned())?
        .map_err(|error| error_chain(&error))?;
    timeout(CONNECT_WITHIN, peer::connect(port.vm, found, &port.socket.at))
        .await
        .map_err(|_| "it can't be connected to in time".to_owned())?
        .map_err(|error| error_chain(&error))
}

/// Reads until QEMU hangs up, and says why that was.
async fn read(mut stream: UnixStream, said: &Mutex<Said>) -> String {
    let mut bytes = [0; READ_BYTES];
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) => return "QEMU closed it".to_owned(),
            Ok(length) => {
                let now = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
                lock(said).stream.take(&bytes[..length], now);
            }
            Err(error) => return error.to_string(),
        }
        sleep(READ_EVERY).await;
    }
}
