// What is left of a mapping is the value that comes back.
import IOMMU

func useAfterBulkUnmap(_ mapping: consuming UnsafeMapping) throws(DMAError) -> IOVA? {
  let rest = try mapping.unmapBulk(isCancelled: { true })
  _ = consume rest
  return mapping.address
}
// expected-error: 'mapping' used after consume
