//! A small file system of its own, which a test can fill. It needs root.

#![allow(dead_code, reason = "each test uses a part")]

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);

/// A loop-mounted ext4 file system, unmounted when dropped.
pub struct SmallDisk {
    directory: tempfile::TempDir,
    root: PathBuf,
}

impl SmallDisk {
    /// Of so many bytes; `Err` says why there can be none.
    pub fn mount(bytes: u64) -> Result<SmallDisk, String> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| e.to_string())?;
        let (image, root) = (directory.path().join("image"), directory.path().join("disk"));
        File::create(&image).and_then(|file| file.set_len(bytes)).map_err(|e| e.to_string())?;
        fs::create_dir(&root).map_err(|e| e.to_string())?;
        let image = image.to_str().expect("a path of ours");
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-b", "4096", image])?;
        run("mount", &["-t", "ext4", "-o", "loop", image, root.to_str().expect("a path of ours")])?;
        Ok(SmallDisk { directory, root })
    }

    /// A directory on it, which is not there yet.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Takes what space is left, to the last block.
    pub fn fill(&self, name: &str) {
        let mut file = File::create(self.root.join(name)).expect("an inode");
        for piece in [1 << 20, 64 << 10, 4096] {
            let zeros = vec![0; piece];
            while file.write_all(&zeros).and_then(|()| file.sync_data()).is_ok() {}
        }
    }

    /// Takes so many bytes.
    pub fn ballast(&self, name: &str, bytes: usize) {
        fs::write(self.root.join(name), vec![1; bytes]).expect("there is room");
    }

    /// Gives back what was taken under that name.
    pub fn free(&self, name: &str) {
        fs::remove_file(self.root.join(name)).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The kernel may hold a killed broker's files for a moment.
        let begun = Instant::now();
        let root = self.root.to_str().expect("a path of ours").to_string();
        while run("umount", &[&root]).is_err() {
            if begun.elapsed() > PATIENCE {
                let _ = run("umount", &["-l", &root]);
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = fs::remove_file(self.directory.path().join("image"));
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let done = Command::new(program).args(arguments).env("PATH", path).output().map_err(|e| format!("{program}: {e}"))?;
    if done.status.success() { Ok(()) } else { Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr))) }
}
