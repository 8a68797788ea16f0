package import IOMMU
import Synchronization

extension FaultingKernel {
  package func readFile(_ path: String) throws(Errno) -> [UInt8] {
    try pass { () throws(Errno) in try base.readFile(path) }
  }

  package func writeFile(_ path: String, _ text: String) throws(Errno) {
    try pass { () throws(Errno) in try base.writeFile(path, text) }
  }

  package func listDirectory(_ path: String) throws(Errno) -> [String] {
    try pass { () throws(Errno) in try base.listDirectory(path) }
  }

  package func readLink(_ path: String) throws(Errno) -> String {
    try pass { () throws(Errno) in try base.readLink(path) }
  }

  package func status(_ path: String) throws(Errno) -> FileStatus {
    try pass { () throws(Errno) in try base.status(path) }
  }

  package func checkAccess(_ path: String, write: Bool) throws(Errno) {
    try pass { () throws(Errno) in try base.checkAccess(path, write: write) }
  }

  package func open(_ path: String) throws(Errno) -> Int32 {
    try pass { () throws(Errno) in try base.open(path) }
  }

  package func close(_ descriptor: Int32) {
    note()
    plan.withLock { plan in
      if let name = plan.journal.descriptors.removeValue(forKey: descriptor) { plan.journal.enter("close \(name)") }
    }
    base.close(descriptor)
  }

  package func pread(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    try pass { () throws(Errno) in try unsafe base.pread(descriptor, buffer, at: offset) }
  }

  package func pwrite(
    _ descriptor: Int32, _ buffer: UnsafeRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    try entering(unsafe busMastering(buffer, at: offset)) { () throws(Errno) in
      try pass("pwrite") { () throws(Errno) in try unsafe base.pwrite(descriptor, buffer, at: offset) }
    }
  }
}
