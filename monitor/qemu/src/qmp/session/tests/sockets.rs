//! Which of several sockets is used, and which is refused.

use super::*;

/// Two sockets of the same QEMU.
fn of_two(first: &Path, second: &Path, limits: Limits) -> (QmpHandle, Notices) {
    let (sender, notices) = mpsc::channel(64);
    let vm = process(std::process::id());
    let sockets = [first, second].map(ListeningSocket::at_path).into();
    let target = QmpTarget { vm, sockets, threads: ThreadsTold::default(), uid: 0 };
    (spawn(Transport::Keep(target), sender, limits, Room::default()), notices)
}

#[tokio::test]
async fn a_second_socket_is_used_where_the_first_one_does_not_greet_and_kept() {
    let (_one, first, silent) = serve();
    let (_two, second, listener) = serve();
    let (_handle, mut notices) = of_two(&first, &second, quick());
    let never_greeted = silent.accept().await.unwrap();
    let mut server = ready(&listener, &mut notices).await;
    // The one that waited in vain was hung up on, and no other came.
    let mut rest = [0; 1];
    let mut stream = never_greeted.0;
    let read =
        timeout(Duration::from_secs(2), tokio::io::AsyncReadExt::read(&mut stream, &mut rest));
    assert_eq!(read.await.expect("an end").unwrap(), 0);
    let again = timeout(Duration::from_millis(300), silent.accept()).await;
    assert!(again.is_err(), "it was tried although the other one serves");
    // When its connection ends, it is the first to be tried again.
    server.say("").await;
    drop(server);
    assert!(matches!(next_state(&mut notices).await, QmpState::Closed { .. }));
    Server::negotiate(&listener).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
}

#[tokio::test]
async fn a_second_socket_is_used_where_the_first_one_is_not_there_or_talks_nonsense() {
    let (_two, second, listener) = serve();
    let (_handle, mut notices) = of_two(Path::new("/nowhere/q.sock"), &second, quick());
    ready(&listener, &mut notices).await;
    let (_one, first, nonsense) = serve();
    let (_handle, mut notices) = of_two(&first, &second, quick());
    let mut stream = nonsense.accept().await.unwrap().0;
    stream.write_all(b"HTTP/1.1 400\r\n").await.unwrap();
    ready(&listener, &mut notices).await;
}

#[tokio::test]
async fn of_two_sockets_that_are_both_in_use_either_is_taken_once_it_is_free() {
    let (_one, first, busy) = serve();
    let (_two, second, listener) = serve();
    let (_handle, mut notices) = of_two(&first, &second, quick());
    let _first = busy.accept().await.unwrap();
    let second = listener.accept().await.unwrap();
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    assert_eq!(next_state(&mut notices).await, QmpState::Busy);
    let mut server = Server { stream: BufReader::new(second.0) };
    server.say(GREETING).await;
    server.answer("qmp_capabilities", json!({})).await;
    server.answer("query-status", json!({"status": "running"})).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
}

#[tokio::test]
async fn a_server_in_another_process_than_the_qemu_is_refused() {
    let (_dir, path, listener) = serve();
    // It has the socket, but another process called `listen`.
    let theirs = std::os::fd::AsFd::as_fd(&listener).try_clone_to_owned().unwrap();
    let mut child = Command::new("sleep").arg("60").stdin(theirs).spawn().unwrap();
    let (_handle, mut notices) = start(process(child.id()), &path, quick());
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    let reason = refusal(next_state(&mut notices).await);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(reason.contains(&format!("not to {}", child.id())), "{reason}");
    // It was told nothing.
    let (stream, _) = listener.accept().await.unwrap();
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said).await.unwrap();
    assert_eq!(said, "");
}

#[tokio::test]
async fn a_socket_on_which_the_qemu_does_not_listen_is_not_even_connected_to() {
    let (_dir, path, listener) = serve();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let (_handle, mut notices) = start(process(child.id()), &path, quick());
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    let state = next_state(&mut notices).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        matches!(&state, QmpState::Closed { reason } if reason.contains("listens on no socket")),
        "{state:?}"
    );
    let came = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(came.is_err());
}

#[tokio::test]
async fn a_process_that_only_has_the_pid_of_the_qemu_is_refused() {
    let (_dir, path, _listener) = serve();
    let vm = process(std::process::id());
    let earlier = VmId { start_ticks: vm.start_ticks - 1, ..vm };
    let (_handle, mut notices) = start(earlier, &path, quick());
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    assert!(refusal(next_state(&mut notices).await).contains("is gone"));
}
