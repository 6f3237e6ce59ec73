use super::*;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

/// A cache in a directory of this test's own, removed at the end.
struct Room(PathBuf, Cache);

impl Room {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("proa-aot-{name}-{}", std::process::id()));
        let cache = Cache::make(&path).unwrap();
        Self(path, cache)
    }

    fn put(&self, key: u8, size: usize) {
        self.publish(key, size, u64::MAX).unwrap();
    }

    fn publish(&self, byte: u8, size: usize, max: u64) -> Result<u64, Error> {
        let source = self.0.join("code");
        fs::write(&source, [b"\x7fELF".as_slice(), &vec![byte; size]].concat()).unwrap();
        let code = File::open(&source).unwrap();
        let published = self.1.publish(&key(byte), &target(), &code, max, &at_once::<Error>);
        fs::remove_file(source).unwrap();
        published
    }

    fn file(&self, byte: u8) -> PathBuf {
        self.0.join(key(byte).file_name())
    }

    fn keys(&self) -> Vec<Key> {
        self.1.list().unwrap().iter().map(|one| one.key).collect()
    }

    /// Makes an entry look as if it was made and used so many seconds ago.
    fn age(&self, byte: u8, seconds: u64) {
        let at = SystemTime::now() - Duration::from_secs(seconds);
        let times = fs::FileTimes::new().set_accessed(at).set_modified(at);
        let file = File::options().write(true).open(self.file(byte)).unwrap();
        file.set_times(times).unwrap();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn target() -> Target {
    Target::from_text("engine x\n")
}

fn key(byte: u8) -> Key {
    // In the order of the bytes.
    Key::new([byte; 32], &target())
}

fn is_code(found: &Found) -> bool {
    matches!(found, Found::Code(_))
}

fn why(found: Found) -> String {
    match found {
        Found::Unusable(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_published_is_found() {
    let room = Room::new("found");
    assert!(matches!(room.1.find(&key(1)), Found::Nothing));
    room.put(1, 1000);
    match room.1.find(&key(1)) {
        Found::Code(facts) => assert_eq!((facts.code, facts.target.get("engine")), (1004, Some("x"))),
        other => panic!("{other:?}"),
    }
    assert!(matches!(room.1.find(&key(2)), Found::Nothing));
    assert_eq!(fs::metadata(room.file(1)).unwrap().mode() & 0o7777, 0o644);
    // Again, in its place.
    room.put(1, 5);
    assert!(is_code(&room.1.find(&key(1))));
    assert_eq!(room.keys(), [key(1)]);
    assert!(room.1.remove(&key(1)).unwrap());
    assert!(!room.1.remove(&key(1)).unwrap());
    assert!(Cache::open(&room.0.join("none")).unwrap().is_none());
}

#[test]
fn what_is_damaged_is_not_used() {
    let room = Room::new("damaged");
    room.put(1, 100_000);
    let whole = fs::read(room.file(1)).unwrap();
    let mut changed = whole.clone();
    changed[50_000] ^= 1;
    for bytes in [&changed[..], &whole[..50_000], b""] {
        fs::write(room.file(1), bytes).unwrap();
        why(room.1.find(&key(1)));
    }
    // Another key's, under this key's name.
    room.put(2, 10);
    fs::copy(room.file(2), room.file(1)).unwrap();
    assert!(why(room.1.find(&key(1))).contains("digest"));
    // And it is replaced.
    room.put(1, 10);
    assert!(is_code(&room.1.find(&key(1))));
}

#[test]
fn what_others_can_write_is_not_used() {
    let room = Room::new("others");
    room.put(1, 10);
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o664, 0o646, 0o666] {
        set(&room.file(1), mode);
        assert!(why(room.1.find(&key(1))).contains("others can write"), "{mode:o}");
    }
    set(&room.file(1), 0o644);
    assert!(is_code(&room.1.find(&key(1))));
    set(&room.0, 0o777);
    let refused = Cache::open(&room.0).unwrap_err().to_string();
    assert!(refused.contains("mode 0777"), "{refused}");
}

#[test]
fn what_belongs_to_another_user_is_not_used() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let room = Room::new("owner");
    room.put(1, 10);
    std::os::unix::fs::chown(room.file(1), Some(12345), None).unwrap();
    assert!(why(room.1.find(&key(1))).contains("uid 12345"));
    std::os::unix::fs::chown(&room.0, Some(12345), None).unwrap();
    assert!(matches!(Cache::open(&room.0), Err(Error::Untrusted { .. })));
}

#[test]
fn what_is_no_file_is_not_used() {
    let room = Room::new("kinds");
    room.put(1, 10);
    symlink(room.file(1), room.file(2)).unwrap();
    fs::create_dir(room.file(3)).unwrap();
    nix::unistd::mkfifo(&room.file(4), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for byte in [2, 3, 4] {
        why(room.1.find(&key(byte)));
    }
    assert!(room.keys().contains(&key(1)));
}

#[test]
fn what_was_used_longest_ago_makes_room() {
    let room = Room::new("room");
    for byte in 1..=4 {
        room.put(byte, 1000);
        room.age(byte, 1000 - u64::from(byte));
    }
    let size = fs::metadata(room.file(1)).unwrap().len();
    // The oldest is used again, beyond the hour in which that is not noted.
    room.age(1, 100_000);
    assert!(is_code(&room.1.find(&key(1))));
    room.publish(5, 1000, 3 * size).unwrap();
    assert_eq!(room.keys(), [key(1), key(4), key(5)]);
    // Its own former self doesn't count.
    room.publish(5, 1000, 3 * size).unwrap();
    assert_eq!(room.keys(), [key(1), key(4), key(5)]);
    let error = room.publish(6, 10_000, 3 * size).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert_eq!(room.keys(), [key(1), key(4), key(5)]);
    assert_eq!(fs::read_dir(&room.0).unwrap().count(), 3, "nothing half-made is left");
}

#[test]
fn pruning_is_by_age_and_by_size() {
    let room = Room::new("prune");
    for byte in 1..=4 {
        room.put(byte, 1000);
        room.age(byte, 100 * u64::from(byte));
    }
    let size = fs::metadata(room.file(1)).unwrap().len();
    let [left, made] = [7, 8].map(|byte| room.0.join(format!("{NEW}{}", key(byte))));
    fs::write(&left, "").unwrap();
    fs::write(&made, "").unwrap();
    let lock = room.1.lock(&key(8), &at_once::<Error>).unwrap();
    let removed = room
        .1
        .prune(None, Some(Duration::from_secs(350)), &at_once::<Error>)
        .unwrap();
    assert_eq!(removed.iter().map(|one| one.key).collect::<Vec<_>>(), [key(4)]);
    let removed = room.1.prune(Some(2 * size), None, &at_once::<Error>).unwrap();
    assert_eq!(removed.iter().map(|one| one.key).collect::<Vec<_>>(), [key(3)]);
    assert_eq!(room.keys(), [key(1), key(2)]);
    assert!(!left.exists() && made.exists(), "what is being made stays");
    drop(lock);
    room.1.prune(None, None, &at_once::<Error>).unwrap();
    assert_eq!(fs::read_dir(&room.0).unwrap().count(), 2, "only the entries are left");
}

fn waits(file: BorrowedFd<'_>) -> Result<bool, Error> {
    rustix::fs::flock(file, FlockOperation::LockExclusive).unwrap();
    Ok(true)
}

/// Whoever can open the directory can lock it: that has to stop nobody.
#[test]
fn a_lock_on_the_directory_is_nobodys_matter() {
    let room = Room::new("others");
    let directory = fs::File::open(&room.0).unwrap();
    rustix::fs::flock(&directory, FlockOperation::LockExclusive).unwrap();
    // One that others could have opened is no lock, either.
    let loose = room.0.join(format!(".{}.lock", key(1)));
    let held = fs::File::create(&loose).unwrap();
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o644)).unwrap();
    rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
    let lock = room.1.lock(&key(1), &at_once::<Error>).unwrap().unwrap();
    room.1.unlock(&key(1), lock).unwrap();
    room.put(1, 10);
    room.1.prune(None, None, &at_once::<Error>).unwrap();
    assert_eq!(room.keys(), [key(1)]);
    for name in fs::read_dir(&room.0).unwrap().flatten().map(|entry| entry.path()) {
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&name).unwrap().permissions());
        assert!(
            mode & 0o077 == 0 || name.extension().is_none_or(|end| end != "lock"),
            "{name:?} {mode:o}"
        );
    }
}

#[test]
fn a_failure_is_forgotten_after_a_day() {
    let room = Room::new("forgotten");
    room.1.mark_failed(&key(1), "a crash").unwrap();
    let file = fs::File::options()
        .append(true)
        .open(room.0.join(format!("{}{FAILED}", key(1))))
        .unwrap();
    file.set_modified(SystemTime::now() - FAILURE_KEPT + Duration::from_secs(60))
        .unwrap();
    assert_eq!(room.1.failure(&key(1)).as_deref(), Some("a crash"));
    file.set_modified(SystemTime::now() - FAILURE_KEPT - Duration::from_secs(60))
        .unwrap();
    assert_eq!((room.1.failure(&key(1)), room.1.outcome(&key(1))), (None, None));
}

#[test]
fn one_at_a_time_makes_a_key() {
    let room = Room::new("lock");
    let lock = room.1.lock(&key(1), &at_once::<Error>).unwrap().unwrap();
    let other = Cache::open(&room.0).unwrap().unwrap();
    assert!(other.lock(&key(1), &at_once::<Error>).unwrap().is_none());
    assert!(other.lock(&key(2), &at_once::<Error>).unwrap().is_some());
    let waiting = std::thread::spawn(move || other.lock(&key(1), &waits).unwrap().is_some());
    room.1.unlock(&key(1), lock).unwrap();
    assert!(waiting.join().unwrap());
}

#[test]
fn a_failure_is_remembered_until_there_is_code() {
    let room = Room::new("failure");
    assert_eq!((room.1.failure(&key(1)), room.1.outcome(&key(1))), (None, None));
    room.1.mark_failed(&key(1), "it was killed").unwrap();
    room.1.mark_failed(&key(1), "it was killed again").unwrap();
    assert_eq!(room.1.failure(&key(1)).as_deref(), Some("it was killed again"));
    assert_eq!(room.1.outcome(&key(1)), Some(false));
    assert_eq!(room.keys(), []);
    room.put(1, 10);
    assert_eq!((room.1.failure(&key(1)), room.1.outcome(&key(1))), (None, Some(true)));
}
