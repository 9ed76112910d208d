// The player in Compare Videos and Compare Checkpoints: what the node showed last comes from the server.

import { app } from '../../../scripts/app.js'
import { after } from '../shared/callbacks.js'
import { addPanel, nodeKey, whenPlaced } from '../shared/panel.js'
import { get } from '../shared/server.js'
import { VideoPlayer } from './video_player.js'

const HEIGHTS = { WanTune_CompareVideos: 300, WanTune_CompareCheckpoints: 340 }
const MIN_WIDTH = 460

/** Hides ComfyUI's own player of the node's output, which is for pages without this script. */
function hideOwnPlayer(node) {
  node.previewMediaType = 'video'
  node.hideOutputImages = true // Nodes 2.0; versions that do not know it are told in compare.css
  node.onDrawBackground = () => {} // where the classic canvas adds its player
}

app.registerExtension({
  name: 'WanTune.compare',
  nodeCreated(node) {
    const height = HEIGHTS[node.comfyClass]
    if (!height) return
    const player = new VideoPlayer()
    addPanel(node, 'wantune_compare', player.element, height)
    hideOwnPlayer(node)
    node.setSize?.([Math.max(node.size[0], MIN_WIDTH), Math.max(node.size[1], node.computeSize()[1])])
    let hasRun = false
    after(node, 'onExecuted', (output) => {
      const data = output?.wantune_compare?.[0]
      if (!data) return
      hasRun = true
      player.show(data)
    })
    after(node, 'onRemoved', () => player.close())
    whenPlaced(node, async () => {
      const { shown } = await get('node', nodeKey(node)).catch(() => ({}))
      if (!hasRun) player.show(shown?.compare)
    })
  },
})
