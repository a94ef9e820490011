use std::{fs, path::Path};

use tempfile::TempDir;

use super::{
    super::{
        archive::{Archive, Directory},
        open,
    },
    *,
};
use crate::api::{Reply, view::RecordView};

/// The user of the VMs.
const UID: u32 = 1000;

fn now(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000 + second)
}

fn files(state: &Path) -> Vec<String> {
    let entries = fs::read_dir(state.join("recordings")).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("one").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

/// What each segment of a file says is lost before it.
fn lost(path: &Path) -> Vec<u64> {
    let mut reader = open(path).expect("a recording");
    std::iter::from_fn(|| reader.next_segment().expect("whole")).map(|(it, _)| it.lost).collect()
}

#[test]
fn a_vms_segments_are_appended_to_one_file_and_say_what_is_missing() {
    let state = TempDir::new().expect("a directory");
    let mut directory = Directory::new(state.path(), 1 << 20);
    let segments = a_panic_after(200).ring.segments();
    for (segment, lost) in segments.iter().zip([0, 4, 0]) {
        directory.append(UID, &header(), segment, lost, now(0));
    }
    assert_eq!(files(state.path()), ["20300317T174640Z-web-1-4711@1000.flr"]);
    let path = state.path().join("recordings/20300317T174640Z-web-1-4711@1000.flr");
    assert_eq!(lost(&path), [0, 4, 0]);
    // The same name again, of a VM that is another.
    directory.end((4711, 99));
    directory.append(UID, &header(), &segments[0], 0, now(0));
    assert_eq!(files(state.path()).len(), 2);
}

#[test]
fn what_could_not_be_written_is_told_by_the_next_block() {
    let state = TempDir::new().expect("a directory");
    let in_the_way = state.path().join("recordings");
    fs::write(&in_the_way, "no directory").expect("written");
    let mut directory = Directory::new(state.path(), 1 << 20);
    let segments = a_panic_after(200).ring.segments();
    directory.append(UID, &header(), &segments[0], 0, now(0));
    fs::remove_file(&in_the_way).expect("removed");
    directory.append(UID, &header(), &segments[1], 1, now(1));
    let path = in_the_way.join(&files(state.path())[0]);
    assert_eq!(lost(&path), [segments[0].records + 1]);
}

#[test]
fn all_files_together_keep_to_the_bound_and_the_oldest_go_first() {
    let state = TempDir::new().expect("a directory");
    let most = 64 << 10;
    let mut directory = Directory::new(state.path(), most);
    let foreign = state.path().join("recordings/notes.txt");
    fs::create_dir(state.path().join("recordings")).expect("made");
    fs::write(&foreign, vec![0; 100_000]).expect("written");
    let live = a_panic_after(200);
    let mut last = String::new();
    for round in 0..100 {
        let Reply::Ok(value) = directory.save(&[(UID, live.recording())], now(round)) else {
            panic!("refused")
        };
        let view: RecordView = serde_json::from_slice(&value).expect("a view");
        last = view.paths[0].clone();
        // Times of files may be as coarse as the kernel's ticks.
        std::thread::sleep(Duration::from_millis(5));
    }
    let recordings = files(state.path()).into_iter().filter(|name| name.ends_with(".flr"));
    let size =
        |name: String| fs::metadata(state.path().join("recordings").join(name)).expect("it").len();
    let sizes: Vec<u64> = recordings.map(size).collect();
    assert!(sizes.iter().sum::<u64>() <= most && sizes.len() > 5, "{sizes:?}");
    assert!(Path::new(&last).exists() && foreign.exists());
}

#[test]
fn the_user_that_has_most_gives_up_its_oldest_and_another_keeps_what_is_older() {
    let state = TempDir::new().expect("a directory");
    let mut directory = Directory::new(state.path(), 64 << 10);
    let live = a_panic_after(200);
    for round in 0..100 {
        let user = if round == 0 { UID } else { UID + 1 };
        directory.save(&[(user, live.recording())], now(round));
        std::thread::sleep(Duration::from_millis(5));
    }
    let files = files(state.path());
    assert!(files.iter().any(|name| name.ends_with("@1000.flr")) && files.len() < 100, "{files:?}");
}

#[test]
fn a_hostile_name_stays_in_the_directory() {
    let state = TempDir::new().expect("a directory");
    let mut directory = Directory::new(state.path(), 1 << 20);
    let mut header = header();
    header.vm = "../../etc/x\n".to_owned();
    directory.append(UID, &header, &a_panic_after(10).ring.segments()[0], 0, now(0));
    assert_eq!(files(state.path()), ["20300317T174640Z-_._.._etc_x_-4711@1000.flr"]);
}

#[test]
fn a_torn_block_is_taken_back_when_a_file_is_gone_a_new_one_begins() {
    let state = TempDir::new().expect("a directory");
    let mut directory = Directory::new(state.path(), 1 << 20);
    let segments = a_panic_after(200).ring.segments();
    directory.append(UID, &header(), &segments[0], 0, now(0));
    fs::remove_file(state.path().join("recordings").join(&files(state.path())[0])).expect("gone");
    directory.append(UID, &header(), &segments[1], 0, now(9));
    let path = state.path().join("recordings").join(&files(state.path())[0]);
    assert_eq!(lost(&path), [0]);
}

#[test]
fn the_thread_writes_all_that_it_was_given_before_it_ends() {
    let state = TempDir::new().expect("a directory");
    let (archive, writing) = Archive::start(state.path(), 1);
    let live = a_panic_after(200);
    let header = Arc::new(header());
    for segment in live.ring.segments() {
        assert!(archive.append(UID, &header, &segment, 0));
    }
    let (sender, reply) = tokio::sync::oneshot::channel();
    archive.save(vec![(UID, live.recording())], sender);
    archive.end(&header);
    drop(archive);
    writing.finish();
    assert!(matches!(reply.blocking_recv(), Ok(Reply::Ok(_))));
    assert_eq!(files(state.path()).len(), 2);
}
