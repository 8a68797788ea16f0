import CIOMMU
import Glibc
import Testing

@Suite("Descriptors over a socket")
struct SocketTests {
  /// The two ends of a socket.
  struct Pair: ~Copyable {
    let here: Descriptor
    let there: Descriptor

    static func make() throws -> Pair {
      var near: Int32 = 0
      var far: Int32 = 0
      #expect(unsafe ci_socketpair(&near, &far) == 0)
      let here = try Descriptor(near)
      let there = try Descriptor(far)
      return Pair(here: here, there: there)
    }
  }

  @Test("What arrives is the same file, closed on exec")
  func pass() throws {
    let pair = try Pair.make()
    let event = try Descriptor(ci_eventfd(0))
    let file = try Descriptor.memory()
    let message: [UInt8] = Array("iommufd".utf8)
    let sent = unsafe ci_send_descriptors(pair.here.number, message, 7, [event.number, file.number], 2)
    #expect(sent == 7)

    var bytes = [UInt8](repeating: 0, count: 32)
    var descriptors = [Int32](repeating: -1, count: 4)
    var count: UInt32 = 4
    #expect(unsafe ci_receive_descriptors(pair.there.number, &bytes, 32, &descriptors, &count) == 7)
    #expect(bytes[..<7].elementsEqual(message) && count == 2)
    let receivedEvent = try Descriptor(descriptors[0])
    let receivedFile = try Descriptor(descriptors[1])
    #expect(receivedEvent.number != event.number)
    #expect(fcntl(receivedEvent.number, F_GETFD) & FD_CLOEXEC != 0)
    #expect(fcntl(receivedFile.number, F_GETFD) & FD_CLOEXEC != 0)
    #expect(ci_eventfd_write(receivedEvent.number, 5) == 0)
    var value: UInt64 = 0
    #expect(unsafe ci_eventfd_read(event.number, &value) == 0 && value == 5)
    var (ours, theirs) = (ci_file_status(), ci_file_status())
    #expect(unsafe ci_fstat(file.number, &ours) == 0 && ci_fstat(receivedFile.number, &theirs) == 0)
    #expect(ours.inode == theirs.inode && ours.device == theirs.device)
  }

  @Test("The most that the kernel takes")
  func most() throws {
    let pair = try Pair.make()
    let event = try Descriptor(ci_eventfd(0))
    let limit = CI_DESCRIPTORS_MAX
    let many = [Int32](repeating: event.number, count: Int(limit) + 1)
    var byte: UInt8 = 1
    #expect(unsafe ci_send_descriptors(pair.here.number, &byte, 1, many, limit + 1) == -Int64(EINVAL))
    #expect(unsafe ci_send_descriptors(pair.here.number, &byte, 1, many, limit) == 1)
    var descriptors = [Int32](repeating: -1, count: Int(limit))
    var count = limit
    #expect(unsafe ci_receive_descriptors(pair.there.number, &byte, 1, &descriptors, &count) == 1)
    #expect(count == limit)
    for descriptor in descriptors { #expect(ci_close(descriptor) == 0) }
  }

  @Test("A descriptor that finds no room is closed, and so are the others")
  func noRoom() throws {
    let pair = try Pair.make()
    var ends: [Int32] = [0, 0]
    #expect(unsafe pipe(&ends) == 0)
    let source = try Descriptor(ends[0])
    var byte: UInt8 = 1
    do {
      let sink = try Descriptor(ends[1])
      let sent = unsafe ci_send_descriptors(pair.here.number, &byte, 1, [sink.number, sink.number], 2)
      #expect(sent == 1)
    }
    var descriptor: Int32 = -1
    var count: UInt32 = 1
    #expect(
      unsafe ci_receive_descriptors(pair.there.number, &byte, 1, &descriptor, &count) == -Int64(EMSGSIZE))
    #expect(count == 0)
    // Only if no copy of the writing end is open any more is this the end of the pipe.
    #expect(unsafe ci_read(source.number, &byte, 1) == 0)
  }

  @Test("Bytes that find no room are an error too")
  func cutMessage() throws {
    let pair = try Pair.make()
    var bytes: [UInt8] = [1, 2, 3]
    var count: UInt32 = 0
    #expect(unsafe ci_send_descriptors(pair.here.number, &bytes, 3, nil, 0) == 3)
    #expect(unsafe ci_receive_descriptors(pair.there.number, &bytes, 2, nil, &count) == -Int64(EMSGSIZE))
  }

  @Test func peerGone() throws {
    var near: Int32 = 0
    var far: Int32 = 0
    #expect(unsafe ci_socketpair(&near, &far) == 0)
    let here = try Descriptor(near)
    #expect(ci_close(far) == 0)
    var byte: UInt8 = 0
    var count: UInt32 = 0
    #expect(unsafe ci_send_descriptors(here.number, &byte, 1, nil, 0) == -Int64(EPIPE), "and no SIGPIPE")
    #expect(unsafe ci_receive_descriptors(here.number, &byte, 1, nil, &count) == 0)
    #expect(unsafe ci_send_descriptors(here.number, &byte, 0, nil, 0) == -Int64(EINVAL))
  }
}
