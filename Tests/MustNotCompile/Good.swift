// Compiles: the baseline that the other files break in one place each.
import IOMMU

func good(_ device: Device) throws(DMAError) {
  var buffer = try device.dma.buffer(byteCount: 64)
  buffer.store(UInt32(1))
  let mapping = try device.dma.map(buffer, .bidirectional)
  buffer = try mapping.unmap()
  buffer.store(UInt32(2))

  switch device.dma.tryMap(buffer, .toDevice) {
  case .mapped(let mapping): buffer = try mapping.unmap()
  case .failed(let same, _): buffer = same
  }

  let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
  let registration = try device.dma.register(unsafe: UnsafeRawBufferPointer(memory))
  try registration.unregister()

  var list = ScatterList()
  list.append(buffer)
  let mapped = try device.dma.map(list, .fromDevice)
  let returned = try mapped.unmap()
  _ = consume returned

  var reservation = try device.dma.reserve(byteCount: 8192)
  try reservation.link(try device.dma.buffer(byteCount: 64), at: 0, .toDevice)
  var linked = try reservation.sync()
  _ = linked.address
  let unlinked = try linked.unlink(0..<4096)
  _ = consume unlinked
  reservation = linked.reopen()
  try reservation.link(try device.dma.buffer(byteCount: 64), at: 4096, .toDevice)
  let rest = try reservation.destroy()
  _ = consume rest
}
