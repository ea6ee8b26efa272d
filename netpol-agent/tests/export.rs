//! Tests the export of flow records to a full disk. The test needs root.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_agent::export::{DropReason, Exporters, FileTarget, Target};
use netpol_api::{LostRecord, RECORD_SCHEMA, Record, RecordHeader};
use nix::mount::MsFlags;

#[test]
fn flow_records_that_do_not_fit_on_the_disk_are_counted() {
    // The test runs on its own thread, because it moves the thread into a new mount namespace.
    std::thread::spawn(export_to_a_full_disk).join().expect("the test failed on its thread");
}

fn export_to_a_full_disk() {
    // The exporter's thread inherits this mount namespace. A tmpfs of 64 KiB in it is the full disk.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("cannot create a mount namespace: run as root");
    let folder = tempfile::tempdir().expect("no folder");
    let mount = |flags: MsFlags, size: &str| {
        nix::mount::mount(Some("none"), folder.path(), Some("tmpfs"), flags, Some(size)).expect("cannot mount");
    };
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("cannot make mounts private");
    mount(MsFlags::empty(), "size=64k");

    let path = folder.path().join("flows");
    let target = Target::File(FileTarget { path: path.clone(), max_size: 1 << 20, files: 2 });
    let (exporters, threads) = Exporters::start(&[target], "node-1").expect("no thread");
    // A record has about 1 KB, so a few records fill the disk.
    let header = RecordHeader {
        schema: RECORD_SCHEMA.to_owned(),
        time: "2026-11-29T07:46:52Z".to_owned(),
        node: "x".repeat(999),
    };
    let record = Arc::new(Record::Lost(LostRecord { header, records: 1 }));
    // The number of exported records, and of records that could not be written.
    let counts = || {
        let (_, counters) = exporters.counters().next().expect("no target");
        (counters.exported(), counters.dropped(DropReason::WriteFailed))
    };
    // Exports records until the condition holds.
    let push_until = |failure: &str, condition: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "{failure}: {:?}", counts());
            exporters.push(&record);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    push_until("no write failed, so the disk is not full", &|| counts().1 > 0);
    let exported_before = counts().0;
    mount(MsFlags::MS_REMOUNT, "size=1m");
    push_until("no records were written after the disk had room again", &|| counts().0 > exported_before + 10);
    let exported = counts().0;
    drop(exporters);
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("no runtime").block_on(threads.finish());
    let text = std::fs::read_to_string(&path).expect("no file");
    assert!(
        text.ends_with('\n') && text.lines().count() as u64 >= exported,
        "{} lines, but {exported} records were exported",
        text.lines().count()
    );
    assert!(text.lines().all(|line| serde_json::from_str::<Record>(line).is_ok()), "a line is incomplete");
    nix::mount::umount(folder.path()).expect("cannot unmount");
}
