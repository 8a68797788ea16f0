// The second would end a registration that may be somebody else's by then.
import IOMMU

func doubleUnregister(_ domain: DMADomain, _ memory: UnsafeRawBufferPointer) throws(DMAError) {
  let registration = try domain.register(unsafe: memory)
  try registration.unregister()
  try registration.unregister()
}
// expected-error: 'registration' consumed more than once
