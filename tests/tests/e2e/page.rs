//! The web page in a real browser, while a guest crashes and comes back.
//!
//! With `FLATLINE_SCREENSHOTS=DIRECTORY`, the pictures of `docs/web.md` are written there.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    browser::{self, Browser},
    daemon::{Daemon, free_address},
    guest::{Accelerator, Guest},
    interrupt::{sleep, wait_until},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    hostile::Fake,
    rig::{BOOT_LIMIT, Load, Rig, put, skippable_trial_with},
    web_access,
};

/// For what the page shows within two ticks, on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// From a crash to the conviction, and from there to the guest's life.
const CRASH_LIMIT: Duration = Duration::from_secs(60);
/// What would run if a name were taken for markup.
const HOSTILE: &str = "<img src=x onerror=document.title=1><b>bold";

pub(crate) fn trials() -> Vec<Trial> {
    vec![skippable_trial_with(
        Load::Spins(1),
        "the_page_shows_in_a_browser_how_a_guest_crashes_and_comes_back",
        page,
    )]
}

/// Where pictures go, if they are wanted.
struct Album(Option<PathBuf>);

impl Album {
    fn take(&self, browser: &mut Browser, name: &str) -> Result<()> {
        // What has the focus is not chosen here.
        browser.value("document.activeElement?.blur()")?;
        let picture = browser.screenshot()?;
        ensure!(picture.starts_with(b"\x89PNG"), "no PNG");
        if let Some(directory) = &self.0 {
            let path = directory.join(name);
            std::fs::write(&path, picture).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn desktop(browser: &mut Browser, scheme: &str) -> Result<()> {
        browser.prefer(scheme)?;
        browser.resize(1200, 640, false)
    }

    fn phone(browser: &mut Browser, scheme: &str) -> Result<()> {
        browser.prefer(scheme)?;
        browser.resize(360, 740, true)
    }
}

fn page() -> Result<Option<String>> {
    let Some(chromium) = browser::find() else {
        return Ok(Some("there is no Chromium (Debian's package `chromium`)".to_owned()));
    };
    let rig = Rig::new()?;
    let mut web = rig.linux("web-1", 1)?;
    web.vga = true;
    let guests = [
        web.start()?,
        rig.boot_sector_on_disk("db-1", BootSector::OnCommand)?.start()?,
        rig.boot_sector("backup-1", BootSector::StiHlt, Accelerator::Tcg).start()?,
    ];
    let fake = rig.dir().join("qemu-system-x86_64-fake");
    put(Path::new(env!("CARGO_BIN_EXE_fake-qemu")), &fake)?;
    let _hostile = Fake::start(&fake, rig.dir(), &format!("guest={HOSTILE}"), "silent")?;
    let mut config = rig.daemon_config()?;
    config.executables.push(fake.display().to_string());
    let address = free_address()?;
    config.metrics = address.to_string();
    let daemon = rig.daemon(&config)?;
    let begun = Instant::now();
    let mut browser = Browser::start(&chromium)?;
    Album::desktop(&mut browser, "light")?;
    browser.open(&web_access::link(&daemon)?)?;
    browser.wait_for("document.querySelectorAll('.vms tbody tr').length === 4", SOON)?;
    keys_are_enough(&mut browser)?;
    names_are_text(&mut browser)?;
    guests[0].wait_until_booted(BOOT_LIMIT)?;
    println!("all is up after {:?}", begun.elapsed());
    let quiet = AtomicBool::new(false);
    let album = Album(env::var_os("FLATLINE_SCREENSHOTS").map(PathBuf::from));
    std::thread::scope(|scope| {
        scope.spawn(|| chatter(&guests[0], &quiet));
        let seen = crash_is_seen(&mut browser, &album, &guests[0], &quiet);
        quiet.store(true, Ordering::Relaxed);
        seen
    })
    .with_context(|| daemon.log().text())?;
    incident_is_seen(&mut browser, &album)?;
    let incident = daemon.incidents()?.pop().context("no incident")?;
    evidence_comes_with_a_session(&daemon, address, incident["id"].as_str().context("no id")?)?;

    unseen_it_asks_seldom(&mut browser)?;

    let complaints = browser.complaints();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    let base = format!("http://{address}/");
    let fetched = browser.fetched();
    let elsewhere: Vec<_> = fetched
        .iter()
        .filter(|url| !url.starts_with(&base) && *url != "about:blank" && !url.starts_with("data:"))
        .collect();
    ensure!(elsewhere.is_empty(), "{elsewhere:#?}");
    let asked = questions(&browser);
    println!("{asked} questions within {:?}", begun.elapsed());
    ensure!(asked as u64 <= 2 * begun.elapsed().as_secs() + 20, "{asked} questions");
    // Last, since the browser complains of it.
    let injected = "(() => { const script = document.createElement('script'); \
                    script.textContent = 'window.ran = true'; document.body.append(script); return window.ran === true; })()";
    ensure!(browser.value(injected)? == false, "a script that stands inline ran");
    Ok(None)
}

fn questions(browser: &Browser) -> usize {
    browser.fetched().iter().filter(|url| url.contains("/api/")).count()
}

/// In the background, a page asks once and then waits, until it is looked at.
fn unseen_it_asks_seldom(browser: &mut Browser) -> Result<()> {
    browser.value("location.hash = '#/'")?;
    browser.wait_for("document.querySelectorAll('.vms tbody tr').length === 4", SOON)?;
    let is_hidden = |is: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {is}, configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.value(&is_hidden(true))?;
    let before = questions(browser);
    sleep(Duration::from_millis(3500))?;
    browser.value("0")?;
    let asked = questions(browser) - before;
    ensure!(asked <= 2, "{asked} questions in 3.5 s out of sight");
    browser.value(&is_hidden(false))?;
    wait_until("it to ask again", SOON, || {
        browser.value("0")?;
        Ok((questions(browser) > before + asked + 1).then_some(()))
    })
}

/// A client without the browser's session gets no evidence.
fn evidence_comes_with_a_session(daemon: &Daemon, address: SocketAddr, id: &str) -> Result<()> {
    let (cookie, _) = web_access::session(daemon, address)?;
    for file in ["screen.png", "registers.txt"] {
        let path = format!("/api/evidence/{id}/{file}");
        let with = web_access::ask(address, &path, &cookie)?;
        ensure!(with.starts_with("HTTP/1.1 200 "), "with a session: {file}: {with}");
        let without = web_access::ask(address, &path, "")?;
        ensure!(without.starts_with("HTTP/1.1 403 "), "without: {file}: {without}");
    }
    Ok(())
}

/// Has the guest send and store a little, until it is to be quiet.
fn chatter(guest: &Guest, quiet: &AtomicBool) {
    let mut round = 0;
    while !quiet.load(Ordering::Relaxed) {
        round += 1;
        // A guest that crashed meanwhile takes nothing.
        let _ = guest.send(if round % 3 == 0 { "disk-write 8 64" } else { "net 4" });
        if sleep(Duration::from_millis(900)).is_err() {
            return;
        }
    }
}

fn no_overflow(browser: &mut Browser, what: &str) -> Result<()> {
    let widths = "[document.documentElement.scrollWidth, innerWidth, \
                  ...[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 \
                  && !e.closest('caption, .skip')).map((e) => e.tagName + '.' + e.getAttribute('class'))]";
    let widths = browser.value(widths)?;
    ensure!(widths[0].as_u64() <= widths[1].as_u64() && widths[2].is_null(), "{what}: {widths}");
    Ok(())
}

fn names_are_text(browser: &mut Browser) -> Result<()> {
    let names = "[...document.querySelectorAll('.vms td.name a')].map((name) => name.textContent)";
    let names = browser.wait_for(&format!("({names}).every((name) => name) && {names}"), SOON)?;
    let names: Vec<&str> =
        names.as_array().context("a list")?.iter().filter_map(Value::as_str).collect();
    ensure!(names.contains(&HOSTILE), "{names:?}");
    ensure!(browser.value("document.querySelector('main img, main b') === null")? == true);
    // Its own page takes the name out of the address.
    let hostile = "[...document.querySelectorAll('.vms td.name a')].find((name) => name.textContent.startsWith('<')).click()";
    browser.value(hostile)?;
    browser.wait_for("document.querySelector('main .state')?.textContent.length > 3", SOON)?;
    ensure!(browser.value("document.querySelector('h1').textContent")? == HOSTILE);
    ensure!(
        browser
            .value("document.querySelector('main img, h1 b') === null && document.title !== '1'")?
            == true
    );
    browser.press("Escape")?;
    browser.wait_for("document.querySelectorAll('.vms tbody tr').length === 4", SOON)?;
    Ok(())
}

fn keys_are_enough(browser: &mut Browser) -> Result<()> {
    browser.press("Tab")?;
    ensure!(browser.value("document.activeElement.className")? == "skip", "the first stop");
    browser.press("/")?;
    ensure!(browser.value("document.activeElement.type")? == "search", "/ goes to the filter");
    for key in ["d", "b", "-"] {
        browser.press(key)?;
    }
    browser.wait_for("document.querySelectorAll('.vms tbody tr').length === 1", SOON)?;
    browser.press("Escape")?;
    browser.wait_for("document.querySelectorAll('.vms tbody tr').length === 4", SOON)?;
    browser.press("ArrowDown")?;
    browser.press("ArrowDown")?;
    let second = "document.activeElement === document.querySelectorAll('.vms td.name a')[1] \
                  && document.activeElement.matches(':focus-visible') \
                  && getComputedStyle(document.activeElement, '::after').outlineStyle === 'solid'";
    ensure!(browser.value(second)? == true, "arrows go to the second row, and it is seen");
    // Ticks come and go, and the focus stays where it is.
    sleep(Duration::from_millis(1500))?;
    ensure!(browser.value("document.activeElement.closest('.vms') !== null")? == true);
    browser.press("Enter")?;
    browser.wait_for("document.querySelectorAll('.charts svg').length === 6", SOON)?;
    browser.press("Escape")?;
    browser.wait_for("document.querySelectorAll('.vms tbody tr').length === 4", SOON)?;
    let there = browser.value("document.activeElement.closest('.vms td.name') !== null")?;
    ensure!(there == true, "coming back, the focus is elsewhere");
    Ok(())
}

fn crash_is_seen(
    browser: &mut Browser,
    album: &Album,
    guest: &Guest,
    quiet: &AtomicBool,
) -> Result<()> {
    let row = "[...document.querySelectorAll('.vms tbody tr')].find((row) => row.querySelector('a').textContent === 'web-1')";
    let state = format!("{row}.querySelector('td.state').textContent");
    browser.wait_for(&format!("{state}.includes('alive')"), SOON)?;
    let line = format!("{row}.querySelector('path.line').getAttribute('d').length > 20");
    browser.wait_for(&line, SOON)?;
    if album.0.is_some() {
        // The pictures are to show what life looks like, too.
        sleep(Duration::from_secs(30))?;
    }
    quiet.store(true, Ordering::Relaxed);
    guest.send("panic")?;
    // Nothing else needs attention more than this one, so that it is the first of all.
    let first = "document.querySelector('.vms tbody tr')";
    let convicted = format!(
        "{first}.querySelector('a').textContent === 'web-1' && /crashed|recovering|suspect/.test({first}.textContent)"
    );
    browser.wait_for(&convicted, CRASH_LIMIT)?;
    let flat = format!("{first}.querySelector('path.flat').getAttribute('d').length > 3");
    ensure!(browser.value(&flat)? == true, "its line isn't flat");
    browser.wait_for("document.title.startsWith('(')", SOON)?;
    let acted = format!("/crashed|recovering/.test({first}.textContent)");
    browser.wait_for(&acted, CRASH_LIMIT)?;
    album.take(browser, "web-list.png")?;
    Album::desktop(browser, "dark")?;
    ensure!(browser.value("getComputedStyle(document.body).backgroundColor")? == "rgb(20, 24, 28)");
    album.take(browser, "web-dark.png")?;
    Album::phone(browser, "light")?;
    no_overflow(browser, "the list")?;
    album.take(browser, "web-phone.png")?;
    browser.value(&format!("{row}.querySelector('a').click()"))?;
    browser.wait_for("document.querySelectorAll('.facts tbody tr').length > 3", SOON)?;
    no_overflow(browser, "a VM")?;
    Album::desktop(browser, "light")?;
    browser.resize(1200, 900, false)?;
    ensure!(browser.value("document.body.innerText.includes('suspect after 3s')")? == true);
    album.take(browser, "web-vm.png")?;
    let back = "document.querySelector('main .state').textContent.includes('alive')";
    browser.wait_for(back, CRASH_LIMIT)?;
    Ok(())
}

fn incident_is_seen(browser: &mut Browser, album: &Album) -> Result<()> {
    browser.value("document.querySelector('nav a[data-view=incidents]').click()")?;
    let recovered = "document.querySelector('.facts tbody')?.textContent.includes('recovered')";
    browser.wait_for(recovered, SOON)?;
    browser.value("document.querySelector('.facts a').click()")?;
    let width = browser
        .wait_for("document.querySelector('img.screen')?.complete && document.querySelector('img.screen').naturalWidth", SOON)?;
    ensure!(width.as_u64() > Some(100), "{width}");
    album.take(browser, "web-incident.png")?;
    Album::phone(browser, "dark")?;
    no_overflow(browser, "an incident")?;
    let text = "fetch([...document.querySelectorAll('main li a')].find((link) => link.textContent === 'registers.txt').href) \
                .then(async (answer) => [answer.headers.get('content-type'), await answer.text()])";
    let text = browser.value(text)?;
    ensure!(text[0] == "text/plain; charset=utf-8", "{text}");
    ensure!(
        text[1].as_str().is_some_and(|text| text.contains("RIP=") || text.contains("EIP=")),
        "{text}"
    );
    Ok(())
}
