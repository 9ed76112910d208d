import assert from 'node:assert/strict'
import test from 'node:test'
import { moved, within, zoomed } from '../../../web/chart/zoom.js'

test('zooming keeps the step under the pointer where it is, within the run', () => {
  const [first, last] = zoomed([0, 1000], 250, 0.5, 1000)
  assert.deepEqual([first, last], [125, 625])
  assert.equal(zoomed([125, 625], 250, 10, 1000), null)
  assert.deepEqual(zoomed([500, 510], 505, 1e-6, 1000), [503, 507])
  assert.deepEqual(moved([100, 200], 5000, 1000), [900, 1000])
  assert.deepEqual(moved([100, 200], -5000, 1000), [0, 100])
  assert.equal(within([-20, 2000], 1000), null)
})
