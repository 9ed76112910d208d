import assert from 'node:assert/strict'
import test from 'node:test'
import { thumbnailQueue } from '../../../web/sheet/thumbnail_queue.js'

const turn = () => new Promise((resolve) => setTimeout(resolve))

function slow() {
  const loads = []
  const load = (id, signal) => new Promise((resolve, reject) => loads.push({ id, signal, resolve, reject }))
  return { loads, ids: () => loads.map(({ id }) => id), load }
}
const never = new AbortController().signal

test('so many are fetched at once, the newest first', async () => {
  const { loads, ids, load } = slow()
  const queue = thumbnailQueue(load, 2)
  const wanted = ['a', 'b', 'c', 'd'].map((id) => queue.want(id, never))
  assert.deepEqual(ids(), ['a', 'b'])
  loads[0].resolve('A')
  assert.equal(await wanted[0], 'A')
  await turn()
  assert.deepEqual(ids(), ['a', 'b', 'd'])
})

test('a failure is told and makes room', async () => {
  const { loads, ids, load } = slow()
  const queue = thumbnailQueue(load, 1)
  const first = queue.want('a', never)
  queue.want('b', never)
  loads[0].reject(new Error('damaged'))
  await assert.rejects(first, /damaged/)
  await turn()
  assert.deepEqual(ids(), ['a', 'b'])
})

test('what is scrolled away before its turn is never fetched', async () => {
  const { loads, ids, load } = slow()
  const queue = thumbnailQueue(load, 1)
  const gone = new AbortController()
  queue.want('a', never)
  const wanted = queue.want('b', gone.signal)
  gone.abort()
  await assert.rejects(wanted, { name: 'AbortError' })
  await assert.rejects(queue.want('c', gone.signal), { name: 'AbortError' })
  loads[0].resolve('A')
  await turn()
  assert.deepEqual(ids(), ['a'])
})
