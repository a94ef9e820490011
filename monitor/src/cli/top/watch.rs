//! The loop: keys, answers, ticks and signals become what the model knows, and that a picture.
//!
//! What waits does so elsewhere: keys are read by a thread of their own, and so is the daemon asked, so
//! that a key is answered at once while the daemon doesn't.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use rustix::process::{Signal, getpid, getsid, kill_current_process_group};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use super::ask::{Answers, Question, answers};
use super::model::{Effect, Model};
use super::screen::Screen;

/// Keys that were pressed and not read yet; a further one waits in the terminal.
const KEYS: usize = 64;

/// Shows `model`, which has its first answer, until it is ended.
pub(super) async fn watch(model: &mut Model, runtime_dir: &Path) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("can't listen for signals")?;
    let mut screen = Screen::take().context("can't take over the terminal")?;
    let mut keys = keys().context("can't start a thread for the keys")?;
    let mut asking =
        Asking { runtime_dir: runtime_dir.to_owned(), under_way: None, page_next: false };
    let mut ticks = interval(model.feed.interval);
    // A daemon that is late is not asked twice for that.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    loop {
        screen.show(model).context("can't draw")?;
        let mut effect = Effect::Draw;
        tokio::select! {
            event = keys.recv() => effect = on_event(model, event)?,
            answers = asking.answer() => asking.take(model, answers?),
            _ = ticks.tick() => {
                model.tick(Instant::now(), SystemTime::now());
                asking.ask(model, true);
            }
            signal = signals.next() => effect = signal,
        }
        // All keys that came meanwhile make one picture.
        while effect == Effect::Draw
            && let Ok(event) = keys.try_recv()
        {
            effect = on_event(model, Some(event))?;
        }
        match effect {
            Effect::Draw => {}
            Effect::DrawAll => screen.take_again().context("can't take over the terminal")?,
            Effect::Ask => asking.ask(model, false),
            Effect::Suspend => suspend(&mut screen, &mut signals).await?,
            Effect::Quit => return Ok(()),
        }
    }
}

fn on_event(model: &mut Model, event: Option<io::Result<Event>>) -> anyhow::Result<Effect> {
    match event
        .context("the thread that reads the keys has ended")?
        .context("can't read the keys")?
    {
        Event::Key(key) if key.kind != KeyEventKind::Release => Ok(model.on_key(key)),
        // The next picture finds the terminal's size.
        _ => Ok(Effect::Draw),
    }
}

/// Keys, from a thread that ends with the process: nothing ends its waiting for one.
fn keys() -> io::Result<mpsc::Receiver<io::Result<Event>>> {
    let (sender, receiver) = mpsc::channel(KEYS);
    let read = move || {
        loop {
            let event = event::read();
            let is_last = event.is_err();
            if sender.blocking_send(event).is_err() || is_last {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".to_owned()).spawn(read)?;
    Ok(receiver)
}

/// The daemon, which is asked one thing at a time.
struct Asking {
    runtime_dir: PathBuf,
    under_way: Option<JoinHandle<Answers>>,
    /// A page was opened meanwhile.
    page_next: bool,
}

impl Asking {
    /// Asks how all VMs stand if `status` is set, and for the open page.
    fn ask(&mut self, model: &mut Model, status: bool) {
        if self.under_way.is_some() {
            self.page_next |= !status;
            return;
        }
        let page = model.page.as_mut().map(|page| (page.key.clone(), page.wants_incidents()));
        if !status && page.is_none() {
            return;
        }
        let (question, runtime_dir) = (Question { status, page }, self.runtime_dir.clone());
        self.under_way = Some(spawn_blocking(move || answers(&runtime_dir, question)));
    }

    /// The answer to what was asked last; forever pending while nothing is.
    async fn answer(&mut self) -> anyhow::Result<Answers> {
        let Some(under_way) = &mut self.under_way else { return std::future::pending().await };
        let answers = under_way.await;
        self.under_way = None;
        answers.context("asking the daemon failed")
    }

    fn take(&mut self, model: &mut Model, answers: Answers) {
        let now = Instant::now();
        model.tick(now, SystemTime::now());
        match answers.status {
            Some(Ok(status)) => model.on_status(status, None, now),
            Some(Err(why)) => model.on_silence(why, now),
            None => {}
        }
        if let (Some(page), Some(answer)) = (&mut model.page, answers.page) {
            page.on_answer(answer);
        }
        model.arrange();
        if std::mem::take(&mut self.page_next) {
            self.ask(model, false);
        }
    }
}

/// Signals that this answers: all that end it, and those of a shell's job control.
struct Signals {
    ends: [unix::Signal; 4],
    stop: unix::Signal,
    continued: unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let ends = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ];
        let [one, two, three, four] = ends.map(unix::signal);
        Ok(Self {
            ends: [one?, two?, three?, four?],
            stop: unix::signal(kind(Signal::TSTP))?,
            continued: unix::signal(kind(Signal::CONT))?,
        })
    }

    async fn next(&mut self) -> Effect {
        let [one, two, three, four] = &mut self.ends;
        tokio::select! {
            _ = one.recv() => Effect::Quit,
            _ = two.recv() => Effect::Quit,
            _ = three.recv() => Effect::Quit,
            _ = four.recv() => Effect::Quit,
            _ = self.stop.recv() => Effect::Suspend,
            // This was stopped without asking, and let it go on.
            _ = self.continued.recv() => Effect::DrawAll,
        }
    }
}

fn kind(signal: Signal) -> SignalKind {
    SignalKind::from_raw(signal.as_raw())
}

/// Stops this and all that the shell started with it, until the shell lets it go on.
async fn suspend(screen: &mut Screen, signals: &mut Signals) -> anyhow::Result<()> {
    // Where this is its session's first process, no shell is there to let it go on again.
    if getsid(None).ok() == Some(getpid()) {
        return Ok(());
    }
    screen.give_back();
    kill_current_process_group(Signal::STOP).context("can't stop")?;
    // The signal to go on is what tells that it was stopped: that happens to its threads one by one.
    signals.continued.recv().await;
    screen.take_again().context("can't take over the terminal")
}

/// How often the daemon is asked, by its own account of how often it samples.
pub(super) fn interval_of(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok().filter(|interval| !interval.is_zero())
}
