import CIOMMU
import Glibc
import Testing

@Suite("Files")
struct FileTests {
  @Test func closedOnExec() throws {
    let file = try unsafe Descriptor(ci_open("/dev/null", CI_O_RDWR, 0))
    #expect(fcntl(file.number, F_GETFD) & FD_CLOEXEC != 0)
    let memory = try Descriptor.memory()
    #expect(fcntl(memory.number, F_GETFD) & FD_CLOEXEC != 0)
    let event = try Descriptor(ci_eventfd(0))
    #expect(fcntl(event.number, F_GETFD) & FD_CLOEXEC != 0)
    #expect(fcntl(event.number, F_GETFL) & O_NONBLOCK != 0)
    let copy = try Descriptor(ci_dup(event.number))
    #expect(fcntl(copy.number, F_GETFD) & FD_CLOEXEC != 0)
  }

  @Test func readAndWriteWhole() throws {
    let file = try Descriptor.memory()
    let data = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    #expect(unsafe ci_pwrite_full(file.number, data, 100_000, 5) == 100_000)
    var back = [UInt8](repeating: 0, count: 100_100)
    #expect(unsafe ci_pread_full(file.number, &back, 100_100, 5) == 100_000, "short only at the end")
    #expect(back[..<100_000].elementsEqual(data))
    var byte: UInt8 = 0
    #expect(unsafe ci_pread(file.number, &byte, 1, 6) == 1 && byte == 7)
    #expect(unsafe ci_pread(file.number, &byte, 1, 200_000) == 0)
    #expect(unsafe ci_pread_full(-1, &byte, 1, 0) == -Int64(EBADF))
    #expect(ci_ftruncate(file.number, 10) == 0)
    #expect(unsafe ci_pread_full(file.number, &back, 100, 0) == 10)
  }

  @Test func status() throws {
    var status = ci_file_status()
    #expect(unsafe ci_stat("/dev/null", &status) == 0)
    #expect(status.mode & S_IFMT == S_IFCHR && status.rdev_major == 1 && status.rdev_minor == 3)
    #expect(unsafe ci_stat("/nonexistent", &status) == -ENOENT)
    #expect(unsafe ci_fstatat(CI_AT_FDCWD, "/proc/self/exe", &status, CI_AT_SYMLINK_NOFOLLOW) == 0)
    #expect(status.mode & S_IFMT == S_IFLNK)
    let file = try Descriptor.memory()
    #expect(ci_ftruncate(file.number, 12345) == 0)
    #expect(unsafe ci_fstat(file.number, &status) == 0)
    #expect(status.size == 12345 && status.uid == ci_geteuid() && status.gid == ci_getegid())
  }

  @Test func access() {
    unsafe #expect(ci_access("/dev/null", CI_R_OK | CI_W_OK) == 0)
    unsafe #expect(ci_access("/nonexistent", CI_F_OK) == -ENOENT)
    unsafe #expect(ci_faccessat(CI_AT_FDCWD, "/dev/null", CI_R_OK, CI_AT_EACCESS) == 0)
    unsafe #expect(ci_access("/dev/null", CI_X_OK) == -EACCES, "not even root may execute a device")
  }

  @Test func links() throws {
    var target = [CChar](repeating: 1, count: 4096)
    let length = unsafe ci_readlink("/proc/self/exe", &target, 4096)
    #expect(length > 1 && target[Int(length)] == 0 && !target[..<Int(length)].contains(0))
    #expect(
      unsafe ci_readlink("/proc/self/exe", &target, UInt64(length)) == -Int64(ENAMETOOLONG),
      "no room for the 0")
    #expect(unsafe ci_readlink("/proc/self/exe", &target, 0) == -Int64(ENAMETOOLONG))
    #expect(unsafe ci_readlink("/dev/null", &target, 4096) == -Int64(EINVAL))
  }

  @Test("A directory is listed whole, however small the buffer", arguments: [64, 100, 4096] as [UInt64])
  func listing(_ size: UInt64) throws {
    let root = try TemporaryDirectory()
    var wanted: [String: UInt32] = ["directory": CI_DT_DIR, ".hidden": CI_DT_REG]
    for i in 0..<60 { wanted["file\(i)"] = CI_DT_REG }
    for (name, type) in wanted {
      if type == CI_DT_DIR {
        unsafe #expect(ci_mkdir("\(root.path)/\(name)", 0o700) == 0)
      } else {
        _ = try unsafe Descriptor(ci_open("\(root.path)/\(name)", CI_O_CREAT | CI_O_WRONLY, 0o600))
      }
    }
    let directory = try unsafe Descriptor(ci_open(root.path, CI_O_DIRECTORY, 0))
    let fd = directory.number
    var found: [String: UInt32] = [:]
    unsafe withUnsafeTemporaryAllocation(byteCount: Int(size), alignment: 8) { buffer in
      let base = buffer.baseAddress!
      while true {
        let count = unsafe ci_directory_read(fd, base, size)
        guard count > 0 else { return #expect(count == 0) }
        var offset: UInt64 = 0
        var type: UInt32 = 0
        while let name = unsafe ci_directory_next(base, UInt64(count), &offset, &type) {
          unsafe found[String(cString: name)] = type
        }
      }
    }
    #expect(found.keys.sorted() == wanted.keys.sorted())
    #expect(found.allSatisfy { $0.value == CI_DT_UNKNOWN || $0.value == wanted[$0.key] })
  }

  @Test("A damaged directory buffer ends the listing")
  func damagedListing() {
    for length in [0, 3, 19, 25, 0xffff] as [UInt16] {
      var record = [UInt8](repeating: 0x41, count: 24)
      record[16] = UInt8(length & 0xff)
      record[17] = UInt8(length >> 8)
      record[23] = 0
      var offset: UInt64 = 0
      var type: UInt32 = 0
      let ended = unsafe ci_directory_next(record, 24, &offset, &type) == nil
      #expect(ended, "\(length)")
    }
    // A name that does not end with its record.
    var record = [UInt8](repeating: 0x2e, count: 24)
    record[16...17] = [24, 0]
    var offset: UInt64 = 0
    var type: UInt32 = 0
    let ended = unsafe ci_directory_next(record, 24, &offset, &type) == nil
    #expect(ended)
  }

  @Test func renameAndUnlink() throws {
    let root = try TemporaryDirectory()
    _ = try unsafe Descriptor(ci_open("\(root.path)/a", CI_O_CREAT | CI_O_WRONLY, 0o600))
    unsafe #expect(ci_rename("\(root.path)/a", "\(root.path)/b") == 0)
    unsafe #expect(ci_unlink("\(root.path)/a") == -ENOENT)
    unsafe #expect(ci_unlink("\(root.path)/b") == 0)
  }
}

@Suite("Memory")
struct MemoryTests {
  @Test func memfd() throws {
    let file = try unsafe Descriptor(ci_memfd_create("test", CI_MFD_ALLOW_SEALING))
    #expect(ci_ftruncate(file.number, 8192) == 0)
    #expect(ci_add_seals(file.number, CI_F_SEAL_SHRINK) == 0)
    #expect(ci_ftruncate(file.number, 4096) == -EPERM, "sealed")
    let address = ci_mmap(nil, 8192, CI_PROT_READ | CI_PROT_WRITE, CI_MAP_SHARED, file.number, 0)
    let memory = try unsafe #require(unsafe UnsafeMutableRawPointer(bitPattern: Int(address)), "\(address)")
    unsafe memory.storeBytes(of: 0x1234_5678, toByteOffset: 4096, as: UInt32.self)
    var word: UInt32 = 0
    #expect(unsafe ci_pread_full(file.number, &word, 4, 4096) == 4 && word == 0x1234_5678)
    let punch = CI_FALLOC_FL_PUNCH_HOLE | CI_FALLOC_FL_KEEP_SIZE
    #expect(ci_fallocate(file.number, punch, 4096, 4096) == 0)
    #expect(unsafe memory.load(fromByteOffset: 4096, as: UInt32.self) == 0)
    #expect(unsafe ci_madvise(memory, 8192, CI_MADV_DONTFORK) == 0)
    #expect(unsafe ci_mprotect(memory, 8192, CI_PROT_READ) == 0)
    #expect(unsafe ci_munmap(memory, 8192) == 0)
  }

  @Test func errors() {
    #expect(ci_mmap(nil, 0, CI_PROT_READ, CI_MAP_PRIVATE | CI_MAP_ANONYMOUS, -1, 0) == -Int64(EINVAL))
    #expect(ci_mmap(nil, 4096, CI_PROT_READ, CI_MAP_SHARED, -1, 0) == -Int64(EBADF))
    #expect(unsafe ci_munmap(UnsafeMutableRawPointer(bitPattern: 1)!, 4096) == -EINVAL)
  }

  @Test("Advice that the arena gives is known to this kernel")
  func advice() throws {
    let length: UInt64 = 4 << 20
    let address = ci_mmap(
      nil, length, CI_PROT_READ | CI_PROT_WRITE, CI_MAP_PRIVATE | CI_MAP_ANONYMOUS, -1, 0)
    let memory = try unsafe #require(unsafe UnsafeMutableRawPointer(bitPattern: Int(address)))
    for advice in [
      CI_MADV_DONTFORK, CI_MADV_DOFORK, CI_MADV_WIPEONFORK, CI_MADV_KEEPONFORK, CI_MADV_DONTDUMP,
    ] {
      #expect(unsafe ci_madvise(memory, length, advice) == 0, "\(advice)")
    }
    // A kernel without transparent huge pages knows no such advice.
    #expect([0, -EINVAL].contains(unsafe ci_madvise(memory, length, CI_MADV_HUGEPAGE)))
    unsafe memory.storeBytes(of: 7, as: UInt8.self)
    #expect(unsafe ci_madvise(memory, length, CI_MADV_DONTNEED) == 0)
    #expect(unsafe memory.load(as: UInt8.self) == 0)
    #expect(unsafe ci_munmap(memory, length) == 0)
  }

  @Test func hugePages() throws {
    let result = unsafe ci_memfd_create("huge", CI_MFD_HUGETLB | CI_MFD_HUGE_2MB)
    guard result >= 0 else {
      #expect([-ENOSYS, -EINVAL, -ENODEV, -EPERM].contains(result), "a kernel or container without them")
      return
    }
    let file = try Descriptor(result)
    var status = ci_file_status()
    #expect(ci_ftruncate(file.number, 2 << 20) == 0)
    #expect(unsafe ci_fstat(file.number, &status) == 0 && status.size == 2 << 20)
    #expect(ci_ftruncate(file.number, 4096) == -EINVAL, "only whole huge pages")
  }

  @Test func nodes() throws {
    let page = ci_page_size()
    let address = ci_mmap(
      nil, 2 * page, CI_PROT_READ | CI_PROT_WRITE, CI_MAP_PRIVATE | CI_MAP_ANONYMOUS, -1, 0)
    let memory = try unsafe #require(unsafe UnsafeMutableRawPointer(bitPattern: Int(address)))
    defer { _ = unsafe ci_munmap(memory, 2 * page) }
    #expect(unsafe ci_mbind_node(memory, page, CI_MPOL_BIND, 1024, 0) == -EINVAL)
    let bound = unsafe ci_mbind_node(memory, page, CI_MPOL_PREFERRED, 0, 0)
    // Containers may forbid what has to do with nodes, kernels may have none.
    guard bound != -EPERM, bound != -ENOSYS else { return }
    #expect(bound == 0)
    #expect(unsafe ci_page_node(memory) == -ENOENT, "nothing there yet")
    unsafe memory.storeBytes(of: 1, as: UInt8.self)
    #expect(unsafe ci_page_node(memory) >= 0)
    #expect(unsafe ci_page_node_populated(memory + Int(page)) >= 0)
    var pages: [UnsafeRawPointer?] = unsafe [UnsafeRawPointer(memory), UnsafeRawPointer(memory + Int(page))]
    var found: [Int32] = [-1, -1]
    #expect(unsafe ci_page_nodes(2, &pages, &found) == 0)
    #expect(found[0] >= 0)
  }
}

@Suite("Process")
struct ProcessTests {
  @Test func identity() throws {
    #expect(ci_getpid() == getpid() && ci_gettid() > 0)
    #expect(ci_getuid() == getuid() && ci_geteuid() == geteuid())
    #expect(ci_getgroups(0, nil) >= 0)
    #expect(ci_page_size().nonzeroBitCount == 1 && ci_page_size() >= 4096)
  }

  @Test func release() {
    var text = [CChar](repeating: 0, count: 65)
    #expect(unsafe ci_kernel_release(&text, 65) == 0)
    #expect(text[0] >= 0x30 && text[0] <= 0x39)
    #expect(unsafe ci_kernel_release(&text, 1) == -ENAMETOOLONG)
  }

  @Test func limits() {
    var limit = ci_rlimit()
    #expect(unsafe ci_getrlimit(CI_RLIMIT_MEMLOCK, &limit) == 0)
    #expect(limit.current <= limit.maximum)
    #expect(ci_setrlimit(CI_RLIMIT_MEMLOCK, limit) == 0)
    #expect(ci_setrlimit(CI_RLIMIT_MEMLOCK, ci_rlimit(current: 2, maximum: 1)) == -EINVAL)
    #expect(unsafe ci_getrlimit(-1, &limit) == -EINVAL)
  }

  /// What `free` shows.
  @Test func physicalMemory() throws {
    let text = try unsafe contents(of: Descriptor(ci_open("/proc/meminfo", CI_O_RDONLY, 0)))
    let line = try #require(text.split(separator: "\n").first { $0.hasPrefix("MemTotal:") })
    let kibibytes = try #require(line.split(separator: " ").dropFirst().first.flatMap { UInt64($0) })
    #expect(ci_physical_memory() == kibibytes << 10)
  }

  @Test("The mask is the one that /proc shows")
  func capabilities() throws {
    var effective: UInt64 = 0
    #expect(unsafe ci_capabilities(&effective) == 0)
    let status = try unsafe contents(of: Descriptor(ci_open("/proc/thread-self/status", CI_O_RDONLY, 0)))
    let line = try #require(status.split(separator: "\n").first { $0.hasPrefix("CapEff:") })
    #expect(UInt64(line.dropFirst("CapEff:".count).drop { $0 == "\t" }, radix: 16) == effective)
    for capability in [CI_CAP_IPC_LOCK, CI_CAP_SYS_ADMIN, CI_CAP_SYSLOG] {
      #expect(ci_has_capability(capability) == Int32(effective >> capability & 1))
    }
    #expect(ci_has_capability(64) == -EINVAL)
  }
}

@Suite("Processors")
struct PerCPUTests {
  @Test func index() {
    #expect(ci_cpu_limit() >= 1 && ci_cpu_limit() >= ci_nproc_configured())
    let threads = (0..<4).map { _ in
      Worker {
        for _ in 0..<1000 { #expect(ci_cpu() < UInt32(ci_cpu_limit())) }
      }
    }
    for thread in threads { thread.join() }
  }

  @Test("Pinned to one processor, the index is that processor's", .enabled(if: ci_rseq_registered() == 1))
  func pinned() {
    // In a thread of its own, which ends with its affinity.
    Worker {
      for cpu in 0..<UInt32(ci_cpu_limit()) {
        let pinned = ci_pin_to_cpu(cpu)
        #expect(pinned == 0 || pinned == -EINVAL, "this process may not run everywhere")
        if pinned == 0 { #expect(ci_cpu() == cpu) }
      }
    }.join()
  }
}
