// Fetching thumbnails, a few at a time and the newest first: pure, tested by tests/web/sheet/thumbnail_queue.test.mjs.

/**
 * Returns {want}: want(id, signal) resolves to what `load(id, signal)` does. What is aborted before its turn is never
 * loaded, and rejects with an AbortError. `most` loads run at a time.
 */
export function thumbnailQueue(load, most = 4) {
  const waiting = []
  let running = 0

  const next = () => {
    while (running < most && waiting.length) {
      const { id, signal, resolve, reject } = waiting.pop()
      running += 1
      load(id, signal).then(resolve, reject).finally(() => {
        running -= 1
        next()
      })
    }
  }
  const aborted = () => new DOMException('Scrolled away.', 'AbortError')

  return {
    want(id, signal) {
      return new Promise((resolve, reject) => {
        if (signal.aborted) return reject(aborted())
        const entry = { id, signal, resolve, reject }
        signal.addEventListener('abort', () => {
          const index = waiting.indexOf(entry)
          if (index < 0) return
          waiting.splice(index, 1)
          reject(aborted())
        })
        waiting.push(entry)
        next()
      })
    }
  }
}
